"""Words of the LIMIT benchmarks that `eval.benchmarks.limit` makes: people's names, and what they like."""

from __future__ import annotations

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
