#!/usr/bin/env python3
"""Checks the hash chains of a Toolgate log from what psql prints, and shares no code with the gateway.

    psql -AtX URL -c "SELECT to_jsonb(e) FROM audit.entries AS e ORDER BY instance_id, seq" | tests/verify_chain.py

Prints one JSON object for each instance: its entries, its last hash, and the number of the first entry that does not fit (or
null). The hash of an entry is SHA-256 over the 32 bytes of the hash before it (zeros before the first) and the RFC 8785 JSON of
its columns that are not null, without the hash itself; times have six digits and end in Z. A chain may begin behind number 1 where
an entry of kind partition_dropped, in a chain that fits itself, names the number and the hash of the one before.
"""
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


def ends(detail):
    """The last numbers and hashes of what an entry of kind partition_dropped says is gone."""
    for end in detail["instances"] + detail["earlier"]:
        if re.fullmatch("[0-9a-f]{64}", end["hash"]):
            yield end["instance"], end["last"], bytes.fromhex(end["hash"])


def main():
    chains, dropped = {}, []
    for line in sys.stdin:
        row = {name: value for name, value in json.loads(line).items() if value is not None}
        stored = bytes.fromhex(row.pop("hash")[2:])
        for name in TIMES & row.keys():
            row[name] = time(row[name])
        text = canonical(row).encode()
        chain = chains.get(row["instance_id"])
        if chain is None:
            # What stands before it is known when everything was read.
            chain = {"entries": 0, "first": (row["seq"], text, stored), "first_wrong": None}
            chains[row["instance_id"]] = chain
        else:
            expected = hashlib.sha256(chain["head"] + text).digest()
            if (row["seq"] != chain["last"] + 1 or expected != stored) and chain["first_wrong"] is None:
                chain["first_wrong"] = min(row["seq"], chain["last"] + 1)
        if row["kind"] == "partition_dropped":
            dropped += [(row["instance_id"], row["seq"], end) for end in ends(row["detail"])]
        chain["entries"] += 1
        chain["head"], chain["last"] = stored, row["seq"]
    # A chain that begins at 1 leans on no other, and the entries that tell of drops stand in such chains.
    for whole in (True, False):
        for instance, chain in chains.items():
            seq, text, stored = chain["first"]
            if (seq == 1) != whole:
                continue
            befores = [bytes(32)] if seq == 1 else [
                hash for by, at, (gone, last, hash) in dropped
                if gone == instance and last == seq - 1 and chains[by]["first"][0] == 1
                and (chains[by]["first_wrong"] is None or chains[by]["first_wrong"] > at)
            ]
            if not any(hashlib.sha256(before + text).digest() == stored for before in befores):
                chain["first_wrong"] = 1
    for instance, chain in sorted(chains.items()):
        del chain["first"]
        chain["head"] = chain["head"].hex()
        print(json.dumps({"instance": instance, **chain}))


main()
