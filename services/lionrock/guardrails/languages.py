"""Which of the mesh's languages a text is written in.

Knows: characters that written Cantonese uses and standard Chinese does not, and characters that only one of the two Chinese
scripts has (Unihan kTraditionalVariant/kSimplifiedVariant, the frequent ones). A Han character counts as one word, a run of
Latin letters too. Does not know: romanised Cantonese, other languages. A hint for choosing a message, no evidence.
"""

import re
from collections import Counter
from enum import StrEnum
from typing import Final

# Code points that are looked at: a hint needs no more.
SAMPLE: Final = 4096

_HAN: Final = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002a6df]+")
_LATIN: Final = re.compile("[A-Za-z][A-Za-z'\u2019-]*")
_CANTONESE: Final = frozenset("嘅咗啲嚟佢冇唔喺咁嗰嘢乜噉哋畀俾啱攞揾搵睇嗌㗎喎啦囉吖咩嘞諗鍾俾瞓攰咪仲邊")
_CANTONESE_WORDS: Final = re.compile("係咪|點解|點樣|邊度|邊個|而家|話我知|當上面|當之前|講過|幾多|聽日|尋日|係我|多謝晒")
_TRADITIONAL: Final = frozenset(
    "這們來時說國對為過還會後學發經無現長體與業產實點問話開關書車馬門見記認識證號碼銀帳戶轉電網視請讓該應際價錢貸險員區廣東灣臺體個"
    "從樣規則權議選舉達運進遠適條約總統計劃動務勞醫療單據資訊訊聯絡繫寫讀語詞"
)
_SIMPLIFIED: Final = (
    frozenset(
        "这们来时说国对为过还会后学发经无现长体与业产实点问话开关书车马门见记认识证号码银帐户转电网视请让该应际价钱贷险员区广东湾个"
        "从样规则权议选举达运进远适条约总统计划动务劳医疗单据资讯联络系写读语词"
    )
    - _TRADITIONAL
)


class Language(StrEnum):
    """BCP 47 tags of the languages that are told apart."""

    CANTONESE = "yue-Hant"
    TRADITIONAL = "zh-Hant"
    SIMPLIFIED = "zh-Hans"
    ENGLISH = "en"


def count_languages(text: str) -> Counter[Language]:
    """Return how many words of each language the first SAMPLE code points have. Chinese counts as one of the three, whole."""
    sample = text[:SAMPLE]
    counts: Counter[Language] = Counter()
    counts[Language.ENGLISH] = sum(1 for word in _LATIN.finditer(sample) if len(word.group()) > 1)
    runs = _HAN.findall(sample)
    if runs:
        han = "".join(runs)
        cantonese = sum(c in _CANTONESE for c in han) + sum(len(_CANTONESE_WORDS.findall(run)) for run in runs)
        # About one character in eight of written Cantonese is one of its own.
        if cantonese * 25 >= len(han):
            counts[Language.CANTONESE] = len(han)
        elif sum(c in _SIMPLIFIED for c in han) > sum(c in _TRADITIONAL for c in han):
            counts[Language.SIMPLIFIED] = len(han)
        else:
            counts[Language.TRADITIONAL] = len(han)
    return counts


def ranked(counts: Counter[Language]) -> list[Language]:
    """Return the languages that occur, most frequent first."""
    return [language for language, count in counts.most_common() if count]


def main_language(text: str) -> Language:
    """Return the most frequent language; English where there are no words."""
    return next(iter(ranked(count_languages(text))), Language.ENGLISH)
