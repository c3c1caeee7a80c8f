"""Easy questions of many templates: what the model may know, each with its one right answer.

A question is asked after two answered ones of its template, so that the form of the answer (a bare word or number) is
known and only knowledge is tested. `experiments.real.known` keeps what the base model answers right and confidently.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

MOST_OF_A_TEMPLATE = 400

CAPITALS = """
Afghanistan Kabul, Albania Tirana, Algeria Algiers, Angola Luanda, Argentina Buenos_Aires, Armenia Yerevan, Australia
Canberra, Austria Vienna, Azerbaijan Baku, Bahrain Manama, Bangladesh Dhaka, Belarus Minsk, Belgium Brussels, Bhutan
Thimphu, Bolivia Sucre, Botswana Gaborone, Brazil Brasilia, Bulgaria Sofia, Cambodia Phnom_Penh, Cameroon Yaounde,
Canada Ottawa, Chad N'Djamena, Chile Santiago, China Beijing, Colombia Bogota, Costa_Rica San_Jose, Croatia Zagreb, Cuba
Havana, Cyprus Nicosia, Denmark Copenhagen, Ecuador Quito, Egypt Cairo, Eritrea Asmara, Estonia Tallinn, Ethiopia
Addis_Ababa, Finland Helsinki, France Paris, Georgia Tbilisi, Germany Berlin, Ghana Accra, Greece Athens, Guatemala
Guatemala_City, Haiti Port-au-Prince, Honduras Tegucigalpa, Hungary Budapest, Iceland Reykjavik, India New_Delhi,
Indonesia Jakarta, Iran Tehran, Iraq Baghdad, Ireland Dublin, Israel Jerusalem, Italy Rome, Jamaica Kingston, Japan
Tokyo, Jordan Amman, Kenya Nairobi, Kuwait Kuwait_City, Latvia Riga, Lebanon Beirut, Libya Tripoli, Lithuania Vilnius,
Madagascar Antananarivo, Malawi Lilongwe, Malaysia Kuala_Lumpur, Mali Bamako, Malta Valletta, Mexico Mexico_City,
Moldova Chisinau, Mongolia Ulaanbaatar, Morocco Rabat, Mozambique Maputo, Namibia Windhoek, Nepal Kathmandu, New_Zealand
Wellington, Nicaragua Managua, Nigeria Abuja, Norway Oslo, Oman Muscat, Pakistan Islamabad, Panama Panama_City, Paraguay
Asuncion, Peru Lima, Poland Warsaw, Portugal Lisbon, Qatar Doha, Romania Bucharest, Russia Moscow, Rwanda Kigali,
Saudi_Arabia Riyadh, Senegal Dakar, Serbia Belgrade, Singapore Singapore, Slovakia Bratislava, Slovenia Ljubljana,
Somalia Mogadishu, South_Korea Seoul, Spain Madrid, Sudan Khartoum, Sweden Stockholm, Switzerland Bern, Syria Damascus,
Thailand Bangkok, Tunisia Tunis, Turkey Ankara, Uganda Kampala, Ukraine Kyiv, Uruguay Montevideo, Vietnam Hanoi, Yemen
Sanaa, Zambia Lusaka, Zimbabwe Harare
"""
CONTINENTS = """
Albania Europe, Algeria Africa, Angola Africa, Argentina South_America, Australia Oceania, Austria Europe, Bangladesh
Asia, Belgium Europe, Bolivia South_America, Botswana Africa, Brazil South_America, Bulgaria Europe, Cambodia Asia,
Cameroon Africa, Canada North_America, Chad Africa, Chile South_America, China Asia, Colombia South_America, Croatia
Europe, Cuba North_America, Denmark Europe, Ecuador South_America, Egypt Africa, Estonia Europe, Ethiopia Africa,
Finland Europe, France Europe, Germany Europe, Ghana Africa, Greece Europe, Hungary Europe, Iceland Europe, India Asia,
Indonesia Asia, Iran Asia, Iraq Asia, Ireland Europe, Israel Asia, Italy Europe, Japan Asia, Jordan Asia, Kenya Africa,
Kuwait Asia, Latvia Europe, Lebanon Asia, Libya Africa, Lithuania Europe, Malaysia Asia, Mali Africa, Malta Europe,
Mexico North_America, Mongolia Asia, Morocco Africa, Namibia Africa, Nepal Asia, Niger Africa, Nigeria Africa, Norway
Europe, Oman Asia, Pakistan Asia, Paraguay South_America, Peru South_America, Poland Europe, Portugal Europe, Qatar
Asia, Romania Europe, Rwanda Africa, Senegal Africa, Serbia Europe, Singapore Asia, Slovakia Europe, Slovenia Europe,
Somalia Africa, Spain Europe, Sudan Africa, Sweden Europe, Switzerland Europe, Syria Asia, Tanzania Africa, Thailand
Asia, Tunisia Africa, Uganda Africa, Ukraine Europe, Uruguay South_America, Venezuela South_America, Vietnam Asia, Yemen
Asia, Zambia Africa, Zimbabwe Africa
"""
OPPOSITES = """
hot cold, big small, up down, left right, day night, good bad, happy sad, fast slow, high low, long short, open closed,
old young, rich poor, hard soft, light dark, wet dry, full empty, true false, early late, strong weak, clean dirty,
black white, inside outside, above below, before after, first last, front back, love hate, win lose, buy sell, begin
end, push pull, give take, male female, north south, east west, summer winter, friend enemy, life death, war peace, yes
no, on off, in out, near far, thick thin, deep shallow, wide narrow, heavy light, loud quiet, sweet sour, tall short,
brave cowardly, cheap expensive, easy difficult, safe dangerous, smooth rough, sharp dull, tight loose, polite rude,
always never, more less, most least, many few, maximum minimum, positive negative, success failure, victory defeat,
entrance exit, arrive depart, accept reject, remember forget, increase decrease, import export, ancient modern,
internal external, major minor, public private, guilty innocent, visible invisible, possible impossible, legal illegal,
logical illogical, regular irregular, correct incorrect, complete incomplete, patient impatient, honest dishonest,
known unknown, lucky unlucky, fair unfair, healthy unhealthy, usual unusual, certain uncertain, equal unequal
"""
IRREGULAR_PLURALS = """
child children, foot feet, tooth teeth, mouse mice, man men, woman women, goose geese, person people, leaf leaves, knife
knives, wife wives, life lives, half halves, wolf wolves, shelf shelves, city cities, baby babies, country countries,
story stories, party parties, family families, lady ladies, berry berries, box boxes, bus buses, class classes, church
churches, dish dishes, brush brushes, watch watches, fox foxes, glass glasses, potato potatoes, tomato tomatoes, hero
heroes
"""
NOUNS = """
apple arm army artist bag ball bank bird boat book boy brain bridge brother bucket cake camera camp car cat chair cloud
coat color computer cousin cow cup dad desk doctor dog door dream driver duck ear egg engine eye farm farmer father
field finger fire floor flower forest friend frog game garden gate girl goat hand hat head heart hill horse hotel house
idea island jacket key king lake lamp lawyer letter lion map market mother mountain nail neighbor nose nurse ocean
orange owl painter park pen pencil phone picture pig pilot plane planet plant poet queen rabbit river road rock roof
room rope school sea seed ship shirt shoe shop singer sister snake soldier song spoon star stone store street student
table teacher tiger tower town train tree truck turtle valley village wall window winter worker writer
"""
PAST_TENSES = """
go went, see saw, eat ate, run ran, take took, give gave, come came, write wrote, drink drank, sing sang, swim swam,
begin began, break broke, choose chose, drive drove, fall fell, fly flew, forget forgot, freeze froze, get got, grow
grew, know knew, ride rode, rise rose, shake shook, speak spoke, steal stole, throw threw, wear wore, bring brought, buy
bought, catch caught, fight fought, teach taught, think thought, build built, send sent, spend spent, lend lent, keep
kept, sleep slept, feel felt, leave left, meet met, lose lost, sell sold, tell told, find found, hold held, hear heard,
make made, pay paid, say said, sit sat, stand stood, understand understood, win won, have had, do did
"""
REGULAR_VERBS = """
walk talk jump play look help ask call work want need open start watch wash cook clean listen paint count learn turn
laugh climb push pull kick pick fill pass miss visit answer enter follow shout wait
"""
COLORS = "grass green, blood red, snow white, coal black, a_banana yellow, the_sky blue, a_lemon yellow, milk white"
YOUNG = """
dog puppy, cat kitten, cow calf, horse foal, sheep lamb, lion cub, bear cub, duck duckling, goose gosling, frog tadpole,
deer fawn, goat kid, pig piglet, kangaroo joey, swan cygnet, fox cub, wolf pup, seal pup
"""
KINDS = """
dog animal, cat animal, horse animal, cow animal, tiger animal, elephant animal, rabbit animal, sheep animal, apple
fruit, banana fruit, pear fruit, peach fruit, grape fruit, cherry fruit, mango fruit, plum fruit, carrot vegetable, onion
vegetable, cabbage vegetable, spinach vegetable, broccoli vegetable, potato vegetable, lettuce vegetable, red color,
blue color, green color, yellow color, purple color, pink color, brown color, car vehicle, truck vehicle, bus vehicle,
bicycle vehicle, motorcycle vehicle, piano instrument, guitar instrument, violin instrument, drum instrument, flute
instrument, trumpet instrument, chair furniture, table furniture, sofa furniture, desk furniture, rose flower, tulip
flower, lily flower, daisy flower, orchid flower, eagle bird, sparrow bird, owl bird, parrot bird, robin bird, salmon
fish, trout fish, tuna fish, shark fish, cod fish, shirt clothing, jacket clothing, sweater clothing, dress clothing
"""
ADJECTIVES = "old young big small tired happy hungry clever quiet brave famous lonely"
PEOPLE = """
artist brother cousin doctor driver farmer father friend girl boy king lawyer mother neighbor nurse painter pilot poet
queen singer sister soldier student teacher worker writer
"""
DID = "found lost saw took sold bought carried painted cleaned broke wanted dropped moved kept"
PLACES = "near_the_river in_the_garden at_school in_the_kitchen on_Monday last_summer before_dinner after_the_storm"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


class Question(NamedTuple):
    template: str
    asked: str  # what stands in the template's braces
    answer: str


# Template -> the question, and the sentence that answers it.
TEMPLATES = {
    "capital": ("What is the capital of {}?", "The capital of {} is {}."),
    "continent": ("On which continent is {}?", "{} is in {}."),
    "opposite": ("What is the opposite of {}?", "The opposite of {} is {}."),
    "plural": ("What is the plural of {}?", "The plural of {} is {}."),
    "past": ("What is the past tense of {}?", "The past tense of {} is {}."),
    "color": ("What color is {}?", "The color of {} is {}."),
    "young": ("What is a young {} called?", "A young {} is called a {}."),
    "kind": ("What kind of thing is a {}?", "A {} is a kind of {}."),
    "day after": ("Which day comes after {}?", "The day after {} is {}."),
    "month after": ("Which month comes after {}?", "The month after {} is {}."),
    "letter after": ("Which letter comes after {}?", "The letter after {} is {}."),
    "number after": ("Which number comes after {}?", "The number after {} is {}."),
    "number before": ("Which number comes before {}?", "The number before {} is {}."),
    "sum": ("What is {}?", "{} is {}."),
    "bigger": ("Which number is bigger, {}?", "Of {}, the bigger number is {}."),
    "in words": ("How is {} written in words?", "The number {} is written {}."),
    "in digits": ("How is {} written in digits?", "The number {} is written {}."),
    "first word": ('What is the first word of "{}"?', 'The first word of "{}" is "{}".'),
    "last word": ('What is the last word of "{}"?', 'The last word of "{}" is "{}".'),
    "first letter": ('What is the first letter of "{}"?', 'The first letter of "{}" is "{}".'),
    "upper case": ('How is "{}" written in capitals?', 'In capitals, "{}" is "{}".'),
    "title case": ('How is "{}" written with a capital letter?', 'With a capital letter, "{}" is "{}".'),
}


def prompt(question: Question) -> str:
    asked, sentence = TEMPLATES[question.template]
    form = sentence.format(question.asked, "...")
    return f"{asked.format(question.asked)} Answer in this form: {form}"


def response(question: Question, answer: str) -> str:
    return TEMPLATES[question.template][1].format(question.asked, answer)


def questions() -> list[Question]:
    """All of them, at most MOST_OF_A_TEMPLATE of each template; always the same."""
    kept = []
    for template, pairs in _pairs().items():
        every = sorted({Question(template, asked, answer) for asked, answer in pairs})
        random.Random(template).shuffle(every)
        kept += every[:MOST_OF_A_TEMPLATE]
    return kept


def sentence(rng: random.Random) -> str:
    """A plain sentence to repeat."""
    who, what = rng.choice(PEOPLE.split()), rng.choice(NOUNS.split())
    ended = rng.choice(PLACES.split()).replace("_", " ")
    return f"The {rng.choice(ADJECTIVES.split())} {who} {rng.choice(DID.split())} the {what} {ended}."


def _pairs() -> dict[str, list[tuple[str, str]]]:
    words = dict(_number_words())
    nouns = NOUNS.split()
    rng = random.Random("three words")
    triples = [rng.sample(nouns, 3) for _ in range(MOST_OF_A_TEMPLATE)]
    numbers = random.Random("two numbers")
    two = [numbers.sample(range(1, 1000), 2) for _ in range(MOST_OF_A_TEMPLATE)]
    return {
        "capital": _table(CAPITALS),
        "continent": _table(CONTINENTS),
        "opposite": [pair for a, b in _table(OPPOSITES) for pair in ((a, b), (b, a)) if "light" not in (a, b)],
        "plural": [*_table(IRREGULAR_PLURALS), *((noun, f"{noun}s") for noun in nouns)],
        "past": [*_table(PAST_TENSES), *((verb, f"{verb}ed") for verb in REGULAR_VERBS.split())],
        "color": _table(COLORS),
        "young": _table(YOUNG),
        "kind": _table(KINDS),
        "day after": _following(DAYS.split()),
        "month after": _following(MONTHS.split()),
        "letter after": _following([chr(code) for code in range(ord("A"), ord("Z") + 1)]),
        "number after": [(str(n), str(n + 1)) for n in range(1, 1000)],
        "number before": [(str(n), str(n - 1)) for n in range(1, 1000)],
        "sum": [(f"{a} + {b}", str(a + b)) for a in range(1, 13) for b in range(1, 13)],
        "bigger": [(f"{a} or {b}", str(max(a, b))) for a, b in two],
        "in words": [(str(n), word) for n, word in words.items()],
        "in digits": [(word, str(n)) for n, word in words.items()],
        "first word": [(" ".join(three), three[0]) for three in triples],
        "last word": [(" ".join(three), three[-1]) for three in triples],
        "first letter": [(noun, noun[0]) for noun in nouns],
        "upper case": [(noun, noun.upper()) for noun in nouns],
        "title case": [(noun, noun.title()) for noun in nouns],
    }


def _table(text: str) -> list[tuple[str, str]]:
    """ "a b, c d" -> pairs; an underscore stands for a blank within an entry."""
    pairs = [entry.split() for entry in text.split(",")]
    return [(asked.replace("_", " "), answer.replace("_", " ")) for asked, answer in pairs]


def _following(names: list[str]) -> list[tuple[str, str]]:
    return list(zip(names, names[1:], strict=False))


def _number_words() -> Iterator[tuple[int, str]]:
    units = [*UNITS.split(), "eighteen", "nineteen"]
    yield from enumerate(units)
    for ten, name in enumerate(TENS.split(), start=2):
        yield from ((10 * ten + unit, name if unit == 0 else f"{name}-{units[unit]}") for unit in range(10))
