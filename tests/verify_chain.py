#!/usr/bin/env python3
"""Checks the hash chains of a Toolgate log from what psql prints, and shares no code with the gateway.

    psql -AtX URL -c "SELECT to_jsonb(e) FROM audit.entries AS e ORDER BY instance_id, seq" | tests/verify_chain.py

Prints one JSON object for each instance: its entries, its last hash, and the number of the first entry that does not fit (or
null). With --checkpoint FILE (a file of C2SP checkpoints; may be given again), --key VKEY (may be given again; without it the
first key that the records name is believed) it holds the RFC 6962 tree over the hashes against them; with --json it prints one
object: the instances, and of the checkpoints how many were read, how many fit, the lines of those that do not, and how many
lie within what was dropped. The hash of an entry is SHA-256 over the 32 bytes of the hash before it (zeros before the first) and the RFC 8785 JSON of its columns that are not
null, without the hash itself; times have six digits and end in Z. A chain may begin behind number 1 where an entry of kind
partition_dropped, in a chain that fits itself, names the number and the hash of the one before, and the tree up to it. A chain
begins with gateway_started, or with the one thing that a command did, and its second entry, chain_signed, is a checkpoint of the
first; of what nobody signed only that stands which the first signed start leads to. Each start names the chains before it.
"""
import argparse
import base64
import datetime
import hashlib
import json
import re
import sys

TIMES = {"recorded_at", "received_at", "decided_at", "forwarded_at", "finished_at"}


def number(value):
    """A number as ECMAScript writes it (RFC 8785, section 3.2.2.3)."""
    value = float(value)
    if value == 0:
        return "0"
    sign, value = ("-", -value) if value < 0 else ("", value)
    mantissa, exponent = re.fullmatch(r"([0-9.]+)e([-+][0-9]+)", shortest(value)).groups()
    digits = mantissa.replace(".", "").rstrip("0")
    point = int(exponent) + 1
    if len(digits) <= point <= 21:
        text = digits + "0" * (point - len(digits))
    elif 0 < point <= 21:
        text = digits[:point] + "." + digits[point:]
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        rest = "." + digits[1:] if len(digits) > 1 else ""
        text = f"{digits[0]}{rest}e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return sign + text


def shortest(value):
    """The shortest digits that mean this float, always with an exponent."""
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    exponent = int(exponent or 0)
    whole, _, fraction = mantissa.partition(".")
    digits = whole + fraction
    exponent += len(whole) - 1
    stripped = digits.lstrip("0")
    exponent -= len(digits) - len(stripped)
    return f"{stripped[0]}.{stripped[1:] or '0'}e{exponent:+d}"


def canonical(value):
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    members = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be"))
    return "{" + ",".join(canonical(name) + ":" + canonical(child) for name, child in members) + "}"


def time(text):
    at = datetime.datetime.fromisoformat(text).astimezone(datetime.timezone.utc)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond:06d}Z"


# Ed25519 as RFC 8032, section 5.1 describes it. Slow, and not hardened against anything: it only verifies.
P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def add(a, b):
    x = (a[1] - a[0]) * (b[1] - b[0]) % P
    y = (a[1] + a[0]) * (b[1] + b[0]) % P
    t = 2 * a[3] * b[3] * D % P
    z = 2 * a[2] * b[2] % P
    e, f, g, h = y - x, z - t, z + t, y + x
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(scalar, point):
    result = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def point(encoded):
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


BASE = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def verifies(public, text, signature):
    if len(signature) != 64:
        return False
    key, r = point(public), point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if key is None or r is None or s >= ORDER:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + text).digest(), "little") % ORDER
    left, right = times(s, BASE), add(r, times(h, key))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 == (left[1] * right[2] - right[1] * left[2]) % P


def unpacked(text):
    """Base64 (RFC 4648, section 4), in its one canonical form."""
    decoded = base64.b64decode(text, validate=True)
    if base64.b64encode(decoded).decode() != text:
        raise ValueError("not canonical")
    return decoded


def key(text):
    """A verifier key: its name, the id that signatures bear, the public key."""
    name, _, coded = text.split("+", 2)
    coded = unpacked(coded)
    if coded[0] != 1 or len(coded) != 33:
        raise ValueError("no Ed25519 key")
    return name, hashlib.sha256(name.encode() + b"\n" + coded).digest()[:4], coded[1:]


def notes(data):
    """The notes of a file: the number of the first line of each, and its bytes."""
    note, first, signatures = b"", 0, False
    for number, line in enumerate(re.findall(rb"[^\n]*\n|[^\n]+", data), 1):
        if note and signatures and not line.startswith("— ".encode()):
            yield first, note
            note, signatures = b"", False
        if not note and line == b"\n":
            continue
        first = first if note else number
        note += line
        signatures = signatures or line == b"\n"
    if note:
        yield first, note


def signed(note, keys):
    """The text of a signed note and which of the keys signed it."""
    whole = note.decode()
    if any(letter < " " and letter != "\n" for letter in whole):
        raise ValueError("control characters")
    at = whole.rindex("\n\n")
    text, lines = whole[: at + 1], whole[at + 2 :]
    if not lines.endswith("\n"):
        raise ValueError("no newline at the end")
    signers, seen = [], set()
    for line in lines[:-1].split("\n"):
        dash, name, coded = line.split(" ")
        coded = unpacked(coded)
        if dash != "—" or not name or "+" in name or len(coded) < 5 or (name, coded[:4]) in seen:
            raise ValueError("no signature")
        seen.add((name, coded[:4]))
        for vkey in keys:
            if key(vkey)[:2] == (name, coded[:4]):
                if not verifies(key(vkey)[2], text.encode(), coded[4:]):
                    raise ValueError("forged")
                signers.append(vkey)
    return text, signers


def follow(changes, given):
    """The keys in force from which entry on, and those that are believed."""
    timeline, proved, before = [], [], None
    for instance, seq, detail in changes:
        new = detail["new"]
        try:
            text, signers = signed(detail["handover"].encode(), {detail["old"], new})
            named = text.split("\n")[:3] == ["toolgate signing key handover", detail["old"], new]
            if named and len(signers) == 2 and before in (None, detail["old"]):
                proved.append({detail["old"], new})
        except (KeyError, ValueError):
            pass
        timeline.append((instance, seq, new))
        before = new
    trusted = set(given or [timeline[0][2]] if timeline else given)
    for _ in proved:
        for pair in proved:
            trusted |= pair if pair & trusted else set()
    return timeline, trusted


def root(peaks):
    """The root of an RFC 6962 tree from its complete subtrees, the largest first."""
    whole = None
    for _, peak in reversed(peaks):
        whole = peak if whole is None else hashlib.sha256(b"\1" + peak + whole).digest()
    return whole


def tree(size, peaks):
    """Complete subtrees over so many entries, with their sizes; none where there can be no such."""
    sizes = [1 << bit for bit in reversed(range(size.bit_length())) if size >> bit & 1]
    if len(sizes) != len(peaks) or not all(re.fullmatch("[0-9a-f]{64}", peak) for peak in peaks):
        return None
    return [(size, bytes.fromhex(peak)) for size, peak in zip(sizes, peaks)]


def grow(peaks, entry):
    size, peak = 1, hashlib.sha256(b"\0" + entry).digest()
    while peaks and peaks[-1][0] == size:
        peak = hashlib.sha256(b"\1" + peaks.pop()[1] + peak).digest()
        size *= 2
    peaks.append((size, peak))


def fits(note, timeline, trusted, roots, gone):
    """Whether a checkpoint is this installation's and says what the entries say; none where those entries were dropped."""
    try:
        text, signers = signed(note, trusted | {vkey for _, _, vkey in timeline})
        origin, size, coded, end = text.split("\n")
        name, instance = origin.rsplit("/", 1)
        signers = [vkey for vkey in signers if vkey in trusted and key(vkey)[0] == name]
        at = (instance, int(size))
        in_force = [vkey for *since, vkey in timeline if tuple(since) <= at]
        counts = (
            not end
            and at[1] > 0
            and str(at[1]) == size
            and len(unpacked(coded)) == 32
            and bool(signers)
            and (not in_force or in_force[-1] in signers)
        )
        if counts and at not in roots and at[1] <= gone.get(instance, 0):
            return None
        return counts and at in roots and roots[at] == unpacked(coded)
    except ValueError:
        return False


ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
COMMANDS = {"key_created", "partition_dropped", "work_viewed"}
PROMPT, CLOCK = datetime.timedelta(seconds=60), datetime.timedelta(seconds=1)


def at(text):
    """The moment that a time of a row is."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def made(instance):
    """When an instance's id was made (UUIDv7 in Crockford base32); none where it is no id."""
    if not re.fullmatch("inst_[0-7][" + ALPHABET + "]{25}", instance):
        return None
    value = 0
    for letter in instance[5:]:
        value = value << 5 | ALPHABET.index(letter)
    return datetime.datetime.fromtimestamp((value >> 80) / 1000, datetime.timezone.utc)


def standing(instance, chain, trusted, timeline, times):
    """Whether a chain's beginning is signed (True), not signed (None), or nothing that the installation began (its first wrong entry)."""
    first, second = chain["begins"].get(1), chain["begins"].get(2)
    signature = second if second is not None and second["kind"] == "chain_signed" else None
    start, born, recorded = first["kind"] == "gateway_started", made(instance), at(first["recorded_at"])
    if not start and first["kind"] not in COMMANDS:
        return 1
    if not start and chain["last"] > (1 if signature is None else 2):
        return 2 if signature is None else 3
    if born is None or recorded < born - (CLOCK if signature is None else CLOCK * 0) or not start and recorded > born + PROMPT:
        return 1
    if signature is None:
        return None
    try:
        text, signers = signed(signature["detail"]["checkpoint"].encode(), trusted)
        origin, size, coded, end = text.split("\n")
    except (KeyError, TypeError, ValueError):
        return 1
    root = hashlib.sha256(b"\0" + chain["first"][2]).digest()
    if size != "1" or end or unpacked(coded) != root:
        return 1
    for vkey in signers:
        until = [times[number + 1] if number + 1 < len(times) else None for number, one in enumerate(timeline) if one[2] == vkey]
        if origin == f"{key(vkey)[0]}/{instance}" and (
            not until or any(one is None or recorded - PROMPT <= one for one in until)
        ):
            return True
    return 1


def beginnings(chains, trusted, timeline, times):
    """Marks what the installation did not begin. Gives the instances that a key signed."""
    said = {
        instance: standing(instance, chain, trusted, timeline, times)
        for instance, chain in chains.items() if 1 in chain["begins"]
    }
    signers = {instance for instance, how in said.items() if how is True}
    unsigned = {instance for instance, how in said.items() if how is None}
    starts = sorted(instance for instance in signers if chains[instance]["begins"][1]["kind"] == "gateway_started")
    if not signers:
        unsigned = {one for one in unsigned if chains[one]["begins"][1]["kind"] == "partition_dropped"}
    leads = starts[:1]
    while leads:
        for known in follows(chains[leads.pop()]):
            if known["instance"] < starts[0] and known["instance"] in unsigned:
                unsigned.remove(known["instance"])
                leads.append(known["instance"])
    for instance, how in said.items():
        if how is not True and how is not None:
            accuse(chains[instance], how)
        elif instance in unsigned:
            accuse(chains[instance], 1)
    return signers


def follows(chain):
    first = chain["begins"].get(1, {})
    return first.get("detail", {}).get("follows", []) if first.get("kind") == "gateway_started" else []


def accuse(chain, seq):
    chain["first_wrong"] = seq if chain["first_wrong"] is None else min(seq, chain["first_wrong"])


def links(chains):
    """Marks what the first start after it does not name, or names with another end."""
    starts = sorted(
        instance for instance, chain in chains.items()
        if chain["begins"].get(1, {}).get("kind") == "gateway_started"
        and (chain["first_wrong"] is None or chain["first_wrong"] > 1)
    )
    named = {}
    for start in starts:
        for known in follows(chains[start]):
            named.setdefault(known["instance"], {})[start] = known
    for instance, chain in chains.items():
        later = [start for start in starts if start > instance]
        if not later:
            continue
        by, first = named.get(instance, {}), chain["begins"].get(1)
        late = (
            first is not None and first["kind"] != "gateway_started"
            and at(first["recorded_at"]) + PROMPT >= at(chains[later[0]]["begins"][1]["recorded_at"])
            and (len(later) == 1 or later[1] in by)
        )
        if later[0] not in by and not late:
            accuse(chain, 1)
            continue
        end = max((known["seq"] for known in by.values()), default=None)
        if end is not None and chain["last"] > end:
            accuse(chain, end + 1)
        for known in by.values():
            if chain["last"] < known["seq"]:
                accuse(chain, chain["last"] + 1)
            elif known["seq"] == chain["last"] and known["hash"] != chain["head"].hex():
                accuse(chain, known["seq"])


def month_end(month):
    year, number = map(int, month.split("-"))
    return datetime.datetime(year + number // 12, number % 12 + 1, 1, tzinfo=datetime.timezone.utc)


def times_hold(record, chains):
    """Whether what an entry of kind partition_dropped says can be, by the times that are known."""
    detail = record["detail"]
    end = month_end(detail["month"])
    if at(record["recorded_at"]) < end:
        return False
    for part in detail["instances"]:
        chain = chains.get(part["instance"])
        if chain and chain["first"][0] == part["last"] + 1 and at(chain["since"]) < end:
            return False
    return all((made(one["instance"]) or end) < end for one in detail["instances"] + detail["earlier"])


def ends(detail):
    """The last numbers, hashes and trees of what an entry of kind partition_dropped says is gone."""
    for end in detail["instances"] + detail["earlier"]:
        peaks = tree(end["last"], end["tree"])
        if re.fullmatch("[0-9a-f]{64}", end["hash"]) and peaks is not None:
            yield end["instance"], end["last"], bytes.fromhex(end["hash"]), peaks


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", action="append", default=[])
    parser.add_argument("--key", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--versions", help="audit.versions, as psql prints to_jsonb of each row")
    given = parser.parse_args()
    chains, roots, gone, changes, dropped, records, digests = {}, {}, {}, {}, [], [], set()
    for line in sys.stdin:
        row = {name: value for name, value in json.loads(line).items() if value is not None}
        stored = bytes.fromhex(row.pop("hash")[2:])
        for name in TIMES & row.keys():
            row[name] = time(row[name])
        text = canonical(row).encode()
        chain = chains.get(row["instance_id"])
        if chain is None:
            # What stands before it is known when everything was read.
            chain = {"entries": 0, "first": (row["seq"], text, stored), "first_wrong": None, "leaves": [],
                     "begins": {}, "since": row["recorded_at"]}
            chains[row["instance_id"]] = chain
        else:
            expected = hashlib.sha256(chain["head"] + text).digest()
            if (row["seq"] != chain["last"] + 1 or expected != stored) and chain["first_wrong"] is None:
                chain["first_wrong"] = min(row["seq"], chain["last"] + 1)
        if given.checkpoint:
            chain["leaves"].append((row["seq"], stored))
        if row["seq"] <= 2:
            chain["begins"].setdefault(row["seq"], row)
        if row["kind"] == "gateway_started" and row["seq"] != 1 or row["kind"] == "chain_signed" and row["seq"] != 2:
            accuse(chain, row["seq"])
        digests |= {row[name] for name in ("contract_digest", "policy_digest") if name in row}
        if row["kind"] == "signing_key_changed":
            changes[row["instance_id"], row["seq"]] = (row["detail"], at(row["recorded_at"]))
        if row["kind"] == "partition_dropped":
            for told in row["detail"]["signing_keys"]:
                changes.setdefault((told["instance"], told["seq"]), (told["detail"], month_end(row["detail"]["month"])))
            records.append(row)
            dropped += [(row["instance_id"], row["seq"], end) for end in ends(row["detail"])]
        chain["entries"] += 1
        chain["head"], chain["last"] = stored, row["seq"]
    timeline, trusted = follow([(*place, detail) for place, (detail, _) in sorted(changes.items())], given.key)
    times = [when for _, (_, when) in sorted(changes.items())]
    signers = beginnings(chains, trusted, timeline, times)
    for record in records:
        if not times_hold(record, chains):
            accuse(chains[record["instance_id"]], record["seq"])

    def is_true(by, number):
        wrong = chains[by]["first_wrong"]
        return chains[by]["first"][0] == 1 and (wrong is None or wrong > number)

    # A chain that begins at 1 leans on no other, and the entries that tell of drops stand in such chains.
    for whole in (True, False):
        for instance, chain in chains.items():
            seq, text, stored = chain["first"]
            if (seq == 1) != whole:
                continue
            befores = [(bytes(32), [], True)] if seq == 1 else [
                (hash, peaks, is_true(by, place)) for by, place, (of, last, hash, peaks) in dropped
                if of == instance and last == seq - 1
            ]
            if not any(true and hashlib.sha256(hash + text).digest() == stored for hash, _, true in befores):
                chain["first_wrong"] = 1
            elif seq > 1:
                gone[instance] = seq - 1
            if not befores:
                continue
            # The tree goes on from there, up to the first entry that is missing.
            peaks, next = list(befores[-1][1]), seq
            for place, leaf in chain["leaves"]:
                if place != next:
                    break
                grow(peaks, leaf)
                roots[instance, place] = root(peaks)
                next += 1
    for by, place, (instance, last, _, peaks) in dropped:
        if is_true(by, place):
            if instance not in chains:
                gone[instance] = max(last, gone.get(instance, 0))
            if last <= gone.get(instance, 0):
                roots[instance, last] = root(peaks)
    links(chains)
    instances = []
    for instance, chain in sorted(chains.items()):
        chain["signed"] = instance in signers if 1 in chain["begins"] else None
        del chain["first"], chain["begins"], chain["since"]
        chain["head"] = chain["head"].hex()
        del chain["leaves"]
        instances.append({"instance": instance, **chain})
    if not given.json:
        for one in instances:
            print(json.dumps(one))
        return
    read, fit, wrong, lost = 0, 0, [], 0
    for path in given.checkpoint:
        with open(path, "rb") as file:
            for line, note in notes(file.read()):
                read += 1
                said = fits(note, timeline, trusted, roots, gone)
                fit += said is True
                lost += said is None
                if said is False:
                    wrong.append(line)
    # Contracts and policies whose texts are missing, or do not give the digests that entries name.
    texts = {}
    for line in open(given.versions) if given.versions else []:
        version = json.loads(line)
        texts[version["digest"]] = version["content"]
    versions = [
        digest for digest in sorted(digests)
        if given.versions and "sha256:" + hashlib.sha256(texts.get(digest, "").encode()).hexdigest() != digest
    ]
    print(json.dumps({"instances": instances, "checkpoints": [read, fit, sorted(set(wrong)), lost], "versions": versions}))


main()
