"""Exports in the hands of somebody who edits them: bytes at random, and files with every digest and count made right again."""

from __future__ import annotations

import base64
import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export_harness import WITNESS_KEYS, WITNESSES, exporting, who
from tamper_targets import UNREADABLE, edit_bytes

from lionrock.audit.export.zip_stream import ZipStream
from lionrock.audit.verify import VerificationFailed, verify_export


class PristineExport:
    """An archive, an earlier one of the same log, and the keys that the auditor has."""

    def __init__(self, archive: bytes, older: bytes, keys: Sequence[str]) -> None:
        self.archive = archive
        self.older = older
        self.keys = keys


async def make_export(directory: Path, *, requests: int) -> PristineExport:
    """Export a real log twice, some requests between."""
    async with exporting(directory) as export:
        older = b""
        for number in range(requests):
            data_class = "suspicion" if number % 7 == 3 else "personal"
            await export.opened.say(b"question %d" % number, b"answer %d" % number, data_class=data_class)
            if number == requests // 2:
                await export.cosign(*WITNESSES)
                older = await export.archive(who("auditor"), with_payloads=True)
                keys = export.keys  # one a log: what followed is in the archive
                await export.change_key()
                await export.change_key(of_platform=True)
        await export.cosign(*WITNESSES)
        return PristineExport(await export.archive(who("auditor"), with_payloads=True), older, keys)


def unpacked(archive: bytes) -> dict[str, bytes]:
    """Read the files as any program does."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def packed(files: Mapping[str, bytes], **manifest: Any) -> bytes:
    """Pack files as an exporter does, with a manifest that lists them as they are, and says what else is given."""
    fields = json.loads(files["manifest.json"])
    lines = files["leaves.jsonl"].count(b"\n")
    fields["leaves"] = lines
    fields["payload_records"] = sum(name.startswith("payloads/") for name in files)
    stream, listed = ZipStream(), {}
    for name, data in files.items():
        if name != "manifest.json":
            entry = stream.add(name, data)
            listed[name] = {"sha256": entry.digest, "bytes": entry.size}
    fields = {**fields, "files": listed} | manifest
    stream.add("manifest.json", json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode())
    stream.finish()
    return stream.take()


class ExportBytes:
    """The archive as it travels: any byte."""

    name = "exports: bytes of the archive"

    def __init__(self, pristine: PristineExport) -> None:
        self.pristine = pristine
        self.archive = pristine.archive
        self._asked = json.loads(unpacked(pristine.archive)["manifest.json"])["selection"]

    def restore(self) -> None:
        self.archive = self.pristine.archive

    def edit(self, chance: random.Random) -> str:
        self.archive, what = edit_bytes(self.archive, chance, self.pristine.older)
        return what

    def meaning(self) -> object:
        """All files, as any program unpacks them, and whatever is around them."""
        try:
            return unpacked(self.archive)
        except Exception:  # noqa: BLE001  zipfile raises a dozen kinds for what is no archive
            return UNREADABLE

    def check(self) -> Sequence[str]:
        try:
            verified = verify_export(io.BytesIO(self.archive), self.pristine.keys, WITNESS_KEYS, 3)
        except VerificationFailed as failure:
            return [str(failure)]
        if verified.manifest["selection"] != self._asked:
            return ["it is another export than the one that was asked for"]
        return []


class ForgedExport(ExportBytes):
    """What stands in the archive, by a forger who makes sizes, digests and counts right again. Signatures he cannot make.

    What he can do is to leave files out whose absence proves nothing, and to ask for something else: the auditor sees both.
    """

    name = "exports: forged files, digests made right"

    def __init__(self, pristine: PristineExport) -> None:
        super().__init__(pristine)
        self._files = unpacked(pristine.archive)
        self._older = unpacked(pristine.older)
        self._edits: list[Callable[[random.Random, dict[str, bytes]], str]] = [
            self._line,
            self._leaf,
            self._path,
            self._index,
            self._replay,
            self._payload,
            self._payload_field,
            self._note,
            self._proof,
            self._link,
        ]

    def edit(self, chance: random.Random) -> str:
        files = dict(self._files)
        what = chance.choice(self._edits)(chance, files)
        self.archive = packed(files)
        return what

    def meaning(self) -> object:
        """Leaves, payloads and checkpoints."""
        files = unpacked(self.archive)
        leaves = [_meaning_of_line(line) for line in files["leaves.jsonl"].split(b"\n")]
        payloads = {name: data for name, data in files.items() if name.startswith("payloads/")}
        return leaves, payloads, files["checkpoint"], files["platform-proof.tlog-proof"], files["key-links.json"]

    def _lines(self, files: Mapping[str, bytes]) -> list[bytes]:
        return files["leaves.jsonl"].splitlines(keepends=True)

    def _line(self, chance: random.Random, files: dict[str, bytes]) -> str:
        lines = self._lines(files)
        at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        match chance.randrange(3):
            case 0:
                del lines[at]
            case 1:
                lines.insert(other, lines[at])
            case _:
                lines[at], lines[other] = lines[other], lines[at]
        files["leaves.jsonl"] = b"".join(lines)
        return f"lines {at} and {other} deleted, doubled or swapped"

    def _leaf(self, chance: random.Random, files: dict[str, bytes]) -> str:
        def alter(line: dict[str, Any]) -> None:
            name = "leaf" if "leaf" in line else "withheld"
            line[name] = base64.b64encode(edit_bytes(base64.b64decode(line[name]), chance, b"")[0]).decode()

        return self._alter(chance, files, alter, "content of a leaf")

    def _path(self, chance: random.Random, files: dict[str, bytes]) -> str:
        def alter(line: dict[str, Any]) -> None:
            path = line["path"]
            at = chance.randrange(len(path))
            match chance.randrange(3):
                case 0:
                    path[at] = base64.b64encode(chance.randbytes(32)).decode()
                case 1:
                    del path[at]
                case _:
                    path.insert(at, base64.b64encode(chance.randbytes(32)).decode())
            line["leaf"] = line.get("leaf", "")  # so that a change is one of meaning: see _meaning_of_line

        return self._alter(chance, files, alter, "path of a leaf")

    def _index(self, chance: random.Random, files: dict[str, bytes]) -> str:
        def alter(line: dict[str, Any]) -> None:
            line["index"] += chance.choice((-1, 1, 1000))

        return self._alter(chance, files, alter, "index of a leaf")

    def _alter(self, chance: random.Random, files: dict[str, bytes], alter: Callable[[dict[str, Any]], None], what: str) -> str:
        lines = self._lines(files)
        at = chance.randrange(len(lines))
        line = json.loads(lines[at])
        alter(line)
        order = [name for name in ("index", "leaf", "withheld", "path") if name in line]
        lines[at] = json.dumps({name: line[name] for name in order}, separators=(",", ":")).encode() + b"\n"
        files["leaves.jsonl"] = b"".join(lines)
        return f"{what} in line {at}"

    def _replay(self, chance: random.Random, files: dict[str, bytes]) -> str:
        name = chance.choice(["leaves.jsonl", "checkpoint", "platform-proof.tlog-proof"])
        files[name] = self._older[name]
        return f"{name} as it was in an earlier export"

    def _payload(self, chance: random.Random, files: dict[str, bytes]) -> str:
        names = sorted(name for name in files if name.startswith("payloads/"))
        name, other = chance.choice(names), chance.choice(names)
        if chance.random() < 0.3 and name != other:
            files[name], files[other] = files[other], files[name]
            return "two payload files swapped"
        files[name], what = edit_bytes(files[name], chance, files[other])
        return f"payload file: {what}"

    def _payload_field(self, chance: random.Random, files: dict[str, bytes]) -> str:
        name = chance.choice(sorted(name for name in files if name.startswith("payloads/")))
        record = json.loads(files[name])
        part = chance.choice(record["payloads"])
        match chance.randrange(4):
            case 0:
                part["text"] = part.get("text", "") + "!"
            case 1:
                part["salt"] = base64.b64encode(chance.randbytes(32)).decode()
            case 2:
                part["leaf_index"] += chance.choice((-1, 1))
            case _:
                part["kind"] = "answer" if part["kind"] == "prompt" else "prompt"
        files[name] = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
        return "field of a payload"

    def _note(self, chance: random.Random, files: dict[str, bytes]) -> str:
        files["checkpoint"], what = edit_bytes(files["checkpoint"], chance, self._older["checkpoint"])
        return f"checkpoint: {what}"

    def _proof(self, chance: random.Random, files: dict[str, bytes]) -> str:
        name = "platform-proof.tlog-proof"
        lines = files[name].split(b"\n")
        at = chance.randrange(len(lines))
        lines[at] = edit_bytes(lines[at] or b"-", chance, b"")[0]
        files[name] = b"\n".join(lines)
        return f"line {at} of the platform's proof"

    def _link(self, chance: random.Random, files: dict[str, bytes]) -> str:
        links = json.loads(files["key-links.json"])["links"]
        at, field = chance.randrange(len(links)), chance.choice(["previous_key", "next_key", "tlog_proof"])
        match chance.randrange(4):
            case 0:
                del links[at]
            case 1:
                links.insert(0, links[at])
            case 2:
                links[at][field] = links[at - 1][field]
            case _:
                altered = edit_bytes(links[at][field].encode(), chance, b"")[0]
                links[at][field] = altered.decode(errors="replace")
        files["key-links.json"] = json.dumps({"links": links}, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
        return f"link {at} from a key to the next"


def _meaning_of_line(line: bytes) -> object:
    """What a lenient reader gets out of a line."""
    try:
        read = json.loads(line)
        return read["index"], read.get("leaf"), read.get("withheld"), read["path"]
    except (ValueError, KeyError, TypeError):
        return line
