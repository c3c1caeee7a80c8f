"""Easy questions of several templates: what the model may know, each with its one right answer.

Some ask for what everybody knows, most for what the question has just said. The form of the answer is said, so that
only the answer's one word or number is open. `experiments.real.known` keeps what the base model answers right and
confidently.
"""

from __future__ import annotations

import random
from itertools import product
from typing import NamedTuple

MOST_OF_A_TEMPLATE = 240

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
NOUNS = """
apple arm army artist bag ball bank bird boat book boy brain bridge brother bucket cake camera camp car cat chair cloud
coat color computer cousin cow cup dad desk doctor dog door dream driver duck ear egg engine eye farm farmer father
field finger fire floor flower forest friend frog game garden gate girl goat hand hat head heart hill horse hotel house
idea island jacket key king lake lamp lawyer letter lion map market mother mountain nail neighbor nose nurse ocean
orange owl painter park pen pencil phone picture pig pilot plane planet plant poet queen rabbit river road rock roof
room rope school sea seed ship shirt shoe shop singer sister snake soldier song spoon star stone store street student
table teacher tiger tower town train tree truck turtle valley village wall window winter worker writer
"""
COLORS = "red blue green yellow black white brown pink purple orange gray"
ADJECTIVES = "old young big small tired happy hungry clever quiet brave famous lonely"
PEOPLE = """
artist brother cousin doctor driver farmer father friend girl boy king lawyer mother neighbor nurse painter pilot poet
queen singer sister soldier student teacher worker writer
"""
DID = "found lost saw took sold bought carried painted cleaned broke wanted dropped moved kept"
PLACES = "near_the_river in_the_garden at_school in_the_kitchen on_Monday last_summer before_dinner after_the_storm"
NAMES = "Anna Ben Clara David Emma Frank Grace Henry Julia Kevin Laura Mark Nina Oscar Paul Rosa Sam Tom Vera Will"
THINGS = "ball car hat coat bag cup chair pencil shirt book lamp table box bike phone clock"
ROOMS = "kitchen garden bathroom garage basement office attic bedroom"
PETS = "dog cat horse rabbit parrot goat mouse snake turtle duck"
MATERIALS = "wood metal glass plastic paper stone leather gold silver"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"


class Question(NamedTuple):
    template: str
    asked: str
    answer: str


# Template -> the question, and the sentence that answers it; {a} is what is asked about, {x} the answer.
TEMPLATES = {
    "capital": ("What is the capital of {a}?", "The capital of {a} is {x}."),
    "opposite": ("What is the opposite of {a}?", "The opposite of {a} is {x}."),
    "plural": ("What is the plural of {a}?", "The plural of {a} is {x}."),
    "number after": ("Which number comes after {a}?", "The number after {a} is {x}."),
    "lives": ("{a} lives in {x}. Where does {a} live?", "{a} lives in {x}."),
    "favorite": ("{a}'s favorite color is {x}. What is {a}'s favorite color?", "{a}'s favorite color is {x}."),
    "age": ("{a} is {x} years old. How old is {a}?", "{a} is {x} years old."),
    "born": ("{a} was born in {x}. When was {a} born?", "{a} was born in {x}."),
    "room": ("The {a} is in the {x}. Where is the {a}?", "The {a} is in the {x}."),
    "bought": ("{a} bought a {x}. What did {a} buy?", "{a} bought a {x}."),
    "pet": ("{a} has a {x} as a pet. Which pet does {a} have?", "{a} has a {x}."),
    "price": ("The {a} costs {x} dollars. How much does the {a} cost?", "The {a} costs {x} dollars."),
    "count": ("{a} has {x} books. How many books does {a} have?", "{a} has {x} books."),
    "day": ("{a} comes home on {x}. When does {a} come home?", "{a} comes home on {x}."),
    "material": ("The {a} is made of {x}. What is the {a} made of?", "The {a} is made of {x}."),
}


def prompt(question: Question) -> str:
    text, sentence = TEMPLATES[question.template]
    form = sentence.format(a=question.asked, x="...")
    return f'{text.format(a=question.asked, x=question.answer)} Answer in one sentence: "{form}"'


def response(question: Question, answer: str) -> str:
    return TEMPLATES[question.template][1].format(a=question.asked, x=answer)


def questions() -> list[Question]:
    """All of them, at most MOST_OF_A_TEMPLATE of each template, in a random order; always the same."""
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
    things, names = THINGS.split(), NAMES.split()
    cities = [city for _, city in _table(CAPITALS) if " " not in city]
    return {
        "capital": _table(CAPITALS),
        "opposite": [pair for a, b in _table(OPPOSITES) for pair in ((a, b), (b, a)) if "light" not in (a, b)],
        "plural": [(noun, f"{noun}s") for noun in NOUNS.split()],
        "number after": [(str(n), str(n + 1)) for n in range(1, 200)],
        "lives": list(product(names, cities)),
        "favorite": list(product(names, COLORS.split())),
        "age": list(product(names, map(str, range(4, 96)))),
        "born": list(product(names, map(str, range(1900, 2020)))),
        "room": list(product(things, ROOMS.split())),
        "bought": list(product(names, things)),
        "pet": list(product(names, PETS.split())),
        "price": list(product(things, map(str, range(2, 100)))),
        "count": list(product(names, map(str, range(2, 100)))),
        "day": list(product(names, DAYS.split())),
        "material": list(product(things, MATERIALS.split())),
    }


def _table(text: str) -> list[tuple[str, str]]:
    """ "a b, c d" -> pairs; an underscore stands for a blank within an entry."""
    pairs = [entry.split() for entry in text.split(",")]
    return [(asked.replace("_", " "), answer.replace("_", " ")) for asked, answer in pairs]
