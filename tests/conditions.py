"""Random metadata and conditions, and what the conditions mean, by Python."""

from __future__ import annotations

import numpy as np

VALUES = [0, 1, 2.5, -3, True, False, "a", "b", "", "1", "it's", 'a"b', "x'); DROP TABLE item; --", "ä"]


def holds(facts: dict, where: dict) -> bool:
    """The conditions by Python."""

    def operator(value, name, wanted):
        if name == "exists":
            return (value is not None) == wanted
        if name == "ne":
            return not operator(value, "eq", wanted)
        if name == "contains":
            return any(operator(v, "eq", wanted) for v in (value if isinstance(value, list) else [value]))
        if value is None or isinstance(value, list):
            return False
        if name == "in":
            return any(operator(value, "eq", w) for w in wanted)
        if isinstance(value, str) != isinstance(wanted, str):
            return False
        return {"eq": value == wanted, "gt": value > wanted, "gte": value >= wanted, "lt": value < wanted,
                "lte": value <= wanted}[name]  # fmt: skip

    def entry(key, wanted):
        if key == "not":
            return not holds(facts, wanted)
        if key in ("and", "or"):
            return {"and": all, "or": any}[key](holds(facts, each) for each in wanted)
        wanted = wanted if isinstance(wanted, dict) else {"in" if isinstance(wanted, list) else "eq": wanted}
        return all(operator(facts.get(key), name, value) for name, value in wanted.items())

    return all(entry(key, wanted) for key, wanted in where.items())


def random_where(rng: np.random.Generator, depth: int = 2) -> dict:
    kind = rng.integers(0, 8 if depth else 5)
    if kind >= 5:
        parts = [random_where(rng, depth - 1) for _ in range(rng.integers(1, 4))]
        return {"not": parts[0]} if kind == 5 else {("and", "or")[kind - 6]: parts}
    key, value = str(rng.choice(["year", "it's", "a b.c", "tags"])), VALUES[rng.integers(len(VALUES))]
    name = str(rng.choice(["eq", "ne", "gt", "gte", "lt", "lte", "in", "exists", "contains"]))
    wanted = {"in": [value, 1], "exists": bool(rng.integers(2))}.get(name, value)
    return {key: value} if kind == 0 else {key: {name: wanted}}


def random_facts(rng: np.random.Generator, count: int) -> list[dict]:
    facts = []
    for _ in range(count):
        chosen = {k: VALUES[rng.integers(len(VALUES))] for k in ("year", "it's", "a b.c") if rng.random() < 0.7}
        tags = {"tags": [VALUES[i] for i in rng.integers(len(VALUES), size=2)]} if rng.random() < 0.5 else {}
        facts.append(chosen | tags)
    return facts
