"""LIMIT: documents that list what a person likes, and queries that ask for every pair of people.

The benchmark of arXiv:2508.21038 (github.com/google-deepmind/limit) shows that one vector per document is not enough:
k = 2 documents are relevant to each query, and every pair of documents is the answer to one, which a vector of too few
dimensions can not give. `load` reads the published sets, of 1,000 queries about 46 documents, alone (limit-small) or
among 50,000 (limit). `make` builds such a benchmark of any size from this module's own words, with nothing to download.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.benchmarks.benchmark import Benchmark

FOLDERS = {"small": "limit-small", "full": "limit"}  # of the repository's folder data
METRICS = (
    "recall@2",
    "recall@10",
    "recall@20",
    "recall@100",
)  # the paper's: 2, 10, 20 of the small, 2, 10, 100 of the full
PER_QUERY = 2  # relevant documents

_NAMES = (
    "Ada Bert Cleo Dirk Elsa Finn Gita Hugo Inga Jens Kaya Lars Mina Nils Olga Pavel Quinn Rosa Sven Tara Uma Viktor "
    "Wanda Yuri Zora"
)
_SURNAMES = (
    "Abel Brandt Cortez Dahl Eklund Fischer Garcia Hoffman Ito Jansen Kowalski Lindgren Moreau Novak Okafor Petrov "
    "Rossi Santos Tanaka Ueda Vogel Weber Yilmaz Zhang"
)
_ATTRIBUTES = (
    "acorns almonds anchors anthems antiques anvils aprons archery armor artichokes asparagus astronomy atlases "
    "autumn badgers badminton bagels ballads ballet balloons bamboo bananas banjos barley baseball baskets basil bats "
    "beaches beans bears bees beetles bells berries bicycles billiards birches biscuits bison bookshops boots bowling "
    "boxing bread bridges brooms bubbles buckets butter buttons cabbage cactuses cakes calendars camels camping "
    "canals candles canoes caramel carrots castles caves cellos ceramics chalk cheese cherries chess chimneys "
    "chocolate cider cinnamon circuses clarinets clocks clouds clover coconuts coffee coins comets comics compasses "
    "copper coral corn cotton crabs cranes crayons crickets crosswords crows cucumbers curry cycling daisies dams "
    "dancing darts deer deserts diamonds dice dinosaurs dolls dolphins dominoes donkeys dragons drums ducks dumplings "
    "eagles eclipses eels elephants elevators embroidery encyclopedias espresso falcons fencing ferns ferries fiddles "
    "figs fireworks fishing flamingos flutes fog foxes fractals frogs gardens garlic geese geometry geysers ginger "
    "giraffes glaciers gliders globes gloves goats golf gondolas grapes gravel guitars gymnastics hammers hammocks "
    "hamsters harbors harps hats hedgehogs helmets herons hiking hockey honey horses icebergs igloos islands ivy "
    "jackets jade jars jasmine jazz jellyfish jigsaws judo jugglers juice kangaroos kayaks kettles keyboards kites "
    "knitting ladders ladybugs lakes lamps lanterns lavender leather lemons lentils lighthouses lilies lizards llamas "
    "lobsters locks looms magnets mangoes maples maps marathons marbles marmalade masks meadows melons mermaids "
    "meteors microscopes mirrors mittens moose mosaics moths mountains museums mushrooms mustard napkins needles "
    "noodles nutmeg oaks oars oboes olives onions opera orchids origami otters owls oysters painting pancakes pandas "
    "paper parachutes parrots peaches peacocks pears pebbles pelicans pencils penguins pepper pianos pigeons pillows "
    "pirates pizza planets plums poetry ponds popcorn poppies postcards potatoes pottery pumpkins puppets puzzles "
    "pyramids quilts rabbits radios rafts railways rainbows ravens recorders reefs ribbons rice rivers robots rockets "
    "roses rowing rubies rugby saffron sailing salads salmon sandals sandwiches sapphires saxophones scarves scooters "
    "sculptures seals seashells shadows sheep silk silver skating skiing sleds snails snow soap soccer spiders "
    "spinach spoons squirrels stamps stars statues storms strawberries submarines suitcases sundials sunflowers "
    "surfing swans swords tapestries teapots telescopes tennis tents theaters thunder tigers toads tomatoes tortoises "
    "towers tractors trains trampolines trombones trout trumpets tulips tunnels turnips turtles typewriters ukuleles "
    "umbrellas unicycles valleys vanilla vases violins volcanoes volleyball waffles walnuts walruses waltzes "
    "waterfalls weasels whales whistles willows windmills wolves wrestling xylophones yachts yogurt zebras zippers"
)
NAMES, SURNAMES, ATTRIBUTES = (tuple(words.split()) for words in (_NAMES, _SURNAMES, _ATTRIBUTES))


def load(folder: str | Path, variant: str = "small") -> Benchmark:
    """A published set.

    Args:
      folder: with queries.jsonl, corpus.jsonl and qrels.jsonl in it, or with the repository's folders limit-small and
        limit.
      variant: "small" or "full", which of these two folders.

    Raises:
      FileNotFoundError: one of the files is missing.
      ValueError: another variant, or a file is not as in `eval.benchmarks.beir`.
    """
    if variant not in FOLDERS:
        raise ValueError(f"variant is {variant!r}: use one of {', '.join(FOLDERS)}")
    folder = Path(folder)
    inside = folder / FOLDERS[variant]
    return Benchmark.load(inside if inside.is_dir() else folder, name=f"LIMIT-{variant}")


def make(
    documents: int = 24,
    *,
    queries: int | None = None,
    others: int = 0,
    liked: int = 40,
    seed: int = 0,
    names: Sequence[str] | None = None,
    attributes: Sequence[str] = ATTRIBUTES,
) -> Benchmark:
    """A benchmark of this kind: "Who likes kites?", and the documents "Ada Dahl likes rice, kites, ... and moths.".

    Each query has an attribute of its own, which its two relevant documents list and no other does. Documents are
    filled up with attributes that nobody asks for, and list theirs in random order.

    Args:
      documents: number N that are relevant to a query; there are N * (N - 1) / 2 pairs of them.
      queries: number of the pairs that are asked for, drawn at random; None = all.
      others: documents beside those, of attributes that nobody asks for.
      liked: attributes in a document, at least; N - 1 of them are asked for where all pairs are.
      seed: of the draws.
      names: of the people, distinct, at least N + others; None = 600 of our own.
      attributes: distinct, more than there are queries.

    Raises:
      ValueError: a number is too small, or there are not enough distinct names or attributes for it.
    """
    names = list(names or (f"{first} {last}" for first, last in itertools.product(NAMES, SURNAMES)))
    pairs = math.comb(documents, PER_QUERY) if documents > 0 else 0
    count = pairs if queries is None else queries
    if documents < PER_QUERY or not 1 <= count <= pairs:
        raise ValueError(
            f"{documents} documents make {pairs} pairs: 1 to {pairs} of them can be asked for, not {count}"
        )
    if others < 0 or liked < 1:
        raise ValueError(f"others is {others} and liked is {liked}: they must be at least 0 and 1")
    for what, given, needed in (("names", names, documents + others), ("attributes", attributes, count)):
        if len(set(given)) < len(given) or len(given) < needed:
            raise ValueError(
                f"{len(given)} {what}, {len(set(given))} of them distinct, where {needed} distinct ones are needed: "
                f"pass others as {what}, or make fewer {'documents' if what == 'names' else 'queries'}"
            )
    rng = np.random.default_rng(seed)
    people = [names[i] for i in rng.permutation(len(names))[: documents + others]]
    shuffled = [attributes[i] for i in rng.permutation(len(attributes))]
    asked, unasked = shuffled[:count], shuffled[count:]
    combinations = list(itertools.combinations(range(documents), PER_QUERY))
    chosen = [combinations[i] for i in np.sort(rng.permutation(pairs)[:count])]
    likes: list[list[str]] = [[] for _ in people]
    for attribute, pair in zip(asked, chosen, strict=True):
        for person in pair:
            likes[person].append(attribute)
    for own in likes:
        lacking = max(liked - len(own), 0)
        if lacking > len(unasked):
            raise ValueError(
                f"a document lacks {lacking} of {liked} attributes and {len(unasked)} are left that nobody asks for: "
                "lower liked, or pass more attributes"
            )
        own += [unasked[i] for i in rng.permutation(len(unasked))[:lacking]]
    texts = [
        _sentence(name, [own[i] for i in rng.permutation(len(own))]) for name, own in zip(people, likes, strict=True)
    ]
    order = rng.permutation(len(people))  # relevant ones and others mixed
    query_ids = [f"query-{i}" for i in range(count)]
    return Benchmark(
        name=f"LIMIT-made-{documents}" + (f"+{others}" if others else ""),
        queries=[{"text": f"Who likes {attribute}?"} for attribute in asked],
        query_ids=query_ids,
        corpus=[{"text": texts[i]} for i in order],
        corpus_ids=[people[i] for i in order],
        qrels={query: {people[i]: 1 for i in pair} for query, pair in zip(query_ids, chosen, strict=True)},
        texts=[texts[i] for i in order],
    )


def _sentence(name: str, likes: Sequence[str]) -> str:
    listed = ", ".join(likes[:-1]) + " and " if len(likes) > 1 else ""
    return f"{name} likes {listed}{likes[-1]}."
