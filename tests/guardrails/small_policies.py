"""Policies for tests: a small one whose rules overlap on purpose."""

MESSAGES = "safe_messages: {yue-Hant: 唔得, zh-Hant: 不行, zh-Hans: 不行的, en: 'no'}\n"

OVERLAPPING = (
    """
profile: overlapping
version: "1"
"""
    + MESSAGES
    + r"""
rules:
  - {id: hkid, type: HKID, detector: hkid, actions: {answer: mask, prompt: mask}}
  - {id: resident, type: RESIDENT_ID, detector: resident_id, actions: {answer: mask}}
  - {id: card, type: CARD, detector: card, actions: {answer: mask}}
  - {id: phone, type: PHONE, detector: phone, actions: {answer: mask}}
  - {id: email, type: EMAIL, detector: email, actions: {answer: mask}}
  - {id: client, type: CLIENT, phrases: [Chan Tai Man, Tai Man Trading, 陳大文, 陳大文銀行], actions: {answer: mask}}
  - {id: short, type: SHORT, patterns: ['a{2,3}b?', '銀(?:行|行家){1,2}'], actions: {answer: mask}}
  - {id: seen, type: SEEN, phrases: [bank, 銀行], patterns: ['[0-9]{3}'], actions: {answer: allow}}
  - {id: word, type: WORD, patterns: ['ab(?:c|cd)?'], whole_words: true, actions: {answer: mask}}
  - {id: doubt, type: DOUBT, phrases: [tip off], actions: {answer: review}}
  - {id: stop, type: STOP, phrases: [stop here, 停低], patterns: ['halt (?:now )?please'], actions: {answer: block}}
"""
)
