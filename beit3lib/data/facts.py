"""Read captions as facts, {slot: value}, and compare them with their references slot by slot.

Metrics of word overlap do not tell a paraphrase from an error; facts do. The slots are those of the checklist
that the annotators of WTS filled in. `TABLE` is the only place where words of captions get a meaning: the
aspect of a sentence (`aspects.py`), contradictions between captions (`viz/marks.py`) and the errors of the
sample (`sample/truth.py`) follow.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import pandas as pd

COLOR = r"(?:(?:light|dark|navy|pale|bright|deep)[- ])?(?:black|white|gr[ae]y|red|blue|navy|green|yellow|brown|beige|orange|pink|purple|khaki|cream|turquoise|teal|maroon|violet|tan|silver)"
CUT = r"(?:colou?rful|patterned|striped|checked|plain|denim|(?:short|long)[- ]sleeved?|long|upper|lower)"
# between a color and its garment
STYLE = rf"[- ,]{{1,2}}(?:(?:{COLOR}|colou?red|and|{CUT})[- ,]{{1,2}}){{0,5}}"
UPPER = r"jackets?|t[- ]?shirts?|shirts?|blouses?|sweaters?|sweatshirts?|hoodies?|cardigans?|vests?|coats?|parkas?|jumpers?|suits?|tops?|uniforms?|dress(?:es)?"
LOWER = r"(?:short )?pants|slacks|trousers|jeans|shorts|skirts?|leggings|bottoms?"
OTHER_CLOTHES = r"outfits?|clothing|clothes|masks?|scar(?:f|ves)|gloves|shoes|sneakers|boots|sandals|bags?|backpacks?|handbags?|rucksacks?|purses?|hair"
NOT_CLOTHES = rf"(?!,?[- ]?(?:{COLOR}|colou?red|cloth\w+|jacket|t-?shirt|shirt|slacks|pants))"
GO = r"(?:go(?:es|ing)?|went|mov~|driv(?:en|~)|drove|travel\w*|proceed~|continu~|head~|walk~|runn?~|cross~)"
SOON = r"(?:about|poised|prepar\w+|ready|going|starting|attempt~|try~|inten[dt]\w*|plann?~|verge|brink|wait~)<2> (?:to|of|for|on)"
BEGIN = r"(?:start~|beg[aiu]n\w*|initiat~|commenc~|resum~)(?: to| its)?"
IS = r"(?: (?:is|was|are|were|be|being|of|at|as|to|seems?|appears?|remain~|described|stated|reported|considered|classified|also|relatively|quite|very))"
OWNER = r"(?:vehicle|pedestrian|car)'s "
SIDE = rf"(?:to|on|at|in|from) (?:the|its|his|her|their|a) (?:{OWNER})?"
OTHER = r"(?:(?:the |a )?(?:vehicle|car|pedestrian)|it|them|him|her)"
SIDES = ("left", "right")
DECADES = "teen(?:s|age|agers?) twenties thirties forties fifties sixties seventies eighties".split()

# {aspect: {slot or kind: {value: pattern}}}. Every match is one fact of the aspect. A value "" has no meaning
# of its own, a named group is a slot whose value is the words of the group. Patterns are whole words; "~"
# stands for the endings of a verb and "<3>" for up to three words. Repetitions are bounded and alternatives
# exclude each other; otherwise the time of a search would be quadratic or exponential in a caption's length.
TABLE: dict[str, dict[str, dict[str, str]]] = {
    "pedestrian_description": {
        "gender": {
            "female": r"female|wom[ae]n|girls?|lady|ladies",
            "male": r"male|m[ae]n|boys?|gentlem[ae]n",
        },
        "age": {
            "child": r"child(?:ren)?|kids?|aged? \d|\d[- ]years?[- ]old",
            **{
                f"{n}0s": rf"(?:in (?:his|her|their) )?(?:(?:early|mid|late)[- ]?)?(?:{n}0'?s|{word})|{n}\d[- ]years?[- ]old|aged? {n}\d"
                for n, word in enumerate(DECADES, 1)
            },
            "elderly": "elderly",
            "": r"middle-aged|(?:young|old)(?:er)? (?:adult|person|people)",
        },
        "height_cm": {
            "": r"(?P<height_cm>1\d\d)(?:\.\d)?[- ]?(?:cm|centimet\w+)|1\.\d+ ?m(?:eters?)?(?= tall)"
        },
        "stature": {
            "": r"(?:tall|short|average)(?:er)? (?:in )?(?:stature|build|height)|(?:slim|stout|slender|heavy-set) build"
        },
        **{
            slot: {
                "": rf"(?:(?P<{slot}_color>{COLOR}){STYLE}|(?:{CUT}[- ]){{0,3}})(?P<{slot}_garment>{garments})"
            }
            for slot, garments in (("upper", UPPER), ("lower", LOWER))
        },
        "hat": {"yes": rf"(?:(?P<hat_color>{COLOR}){STYLE})?(?:hats?|caps?|helmets?|beanies?)"},
        "glasses": {"yes": r"(?:sun)?glasses"},
        "clothing": {"": rf"(?:{COLOR}{STYLE})?(?:{OTHER_CLOTHES})"},
        "cane": {"yes": r"(?:walking )?(?:canes?|sticks?)"},
        "aid": {"": r"crutch(?:es)?|wheelchairs?|umbrellas?"},
    },
    "moving": {
        "speed_kmh": {
            "0": r"speed (?:is|was|of|being|at) (?:zero|0)",
            "": r"(?P<speed_kmh>\d+)(?:\.\d+)? ?(?:km ?/ ?h\w*|kmh|kph|kilomet\w+ (?:per|an) hour)|(?:constant|steady) speed|speed~ up|react~",
        },
        "speed": {
            "slow": r"(?:slow|low) (?:speed|pace)|slow(?:ly)?(?<!around slowly)(?! (?:down|look|glanc|observ|scan|survey|watch))",
            "fast": r"(?:slightly )?(?:high|fast)(?:er)?(?: than \w+)? (?:speed|pace)|speed (?:is|was)<1> (?:high|fast)(?:er)?|fast(?:er)?|quick(?:ly)?(?! deci)|rapidly|briskly|hurried\w*",
            "normal": r"(?:normal|moderate|regular|average|usual)(?: walking)? (?:speed|pace)|(?:speed|pace) (?:is|was|of|being)<1> normal",
        },
        "avoid": {
            "": r"(?:not|\w+n't|never|without) (?:yet |\w+ly )?(?:collid~|hit|cross~|stopp?~|turn~|brak~|start~|revers~|pass~|walk~|runn?~)"
            r"|(?:avoid|avert|prevent)\w*<4> (?:colli\w+|contact|accidents?|hitting)|(?:potential|possible|imminent|no|risk of(?: a)?) collisions?|avoid\w*|evad~|evasive|swerv~|dodg~|near[- ]miss|impact"
        },
        "wait": {"": r"wait~(?! to)(?: for(?: \w+){1,4} to \w+ \w+)?"},
        "motion": {
            "about to cross": rf"{SOON} (?:\w+ )?cross(?:ing)?",
            "stopping": rf"{SOON} (?:come to a )?(?:stop|halt)|(?:slowing|coming) to a (?:stop|halt)|stopping",
            "rushing out": rf"(?:{SOON} )?(?:(?:rush~|dash~|dart~)(?: out)?|(?:jump|burst)~ out)",
            "reversing": rf"(?:{SOON} )?(?:revers~|back~ (?:up|out)|mov~ backwards?)",
            **{
                f"turning {side}": rf"(?:(?:{SOON}|{BEGIN}) )?(?:turn~(?: to the)? {side}|{side}[- ]turn)"
                for side in SIDES
            },
            "starting": rf"(?:{SOON} (?:start|move|go|depart|proceed|initiat\w*|commenc\w*)\w*|{BEGIN} (?:mov|go|accelerat|driv|proceed)\w*)(?: (?:moving|walking|movement|forward|straight))?",
            "crossing": r"(?<!a pedestrian )(?<!zebra )cross~(?! the line| point| signal| destination|-)",
            "straight": rf"{GO}<3> (?:straight|ahead|forwards?|along)(?: ahead| forward)?|straight (?:path|course|line)",
            "braking": r"(?:emergency |sudden |hard )?brak~",
            "colliding": r"collid~|collisions?|crash~|hits?|hitting|struck|strikes?|bump~|(?:ma[dk]~|came into|in) contact",
            "passing": rf"(?:{SOON} pass|pass(?:es|ed|ing))(?! (?:vehicle|car|through))|overtak~",
            "falling": r"(?<!rain )(?<!snow )fall(?:s|en|ing)?(?! under| into| within)|fell|thrown|stumbl~|slipp~|tripp?~",
            "running": r"running|runs|ran|jogg?~|sprint~",
            "stopped": r"stop(?:s|ped)?(?! sign)|halt(?:s|ed)?|standstill|stationary|paus~|(?:state of|at) rest|not moving|parked(?! (?:car|vehicle|truck))|idl~",
            "standing": r"(?:stand~|stood|remain~|stay~) (?:completely )?(?:still|motionless)|motionless|standing(?! at| tall| approx| around| about| in h| \d| (?:a|the) height)",
            "walking": rf"(?:(?:{SOON}|{BEGIN}) )?(?:(?<!-)walk~(?! (?:cane|stick|aid))|stroll~|mov~|travel(?:s|l?ing|l?ed)|proceed~)",
            # "stood" before a position is filler
            "": r"turn~(?! on| off| signal| lane| indicator)|u-turn|chang~ lanes?|merg~|(?:de|ac)celerat\w+|slow~ down|yield~|approach\w*|enter(?:s|ed|ing)|step(?:ped|ping)"
            r"|steps (?:out|in|into|off|onto|forwards?|back|aside|down)|(?:stands?|stood|remain~|stay~)(?! at| tall| \d| (?:a|the) height| in height)|still(?= ?[,.]|$| and| on| in| at)"
            r"|sit~|sitting|squat\w*|crouch~|lying|rid(?:es?|ing)|pushing|pulling|carrying|holding|direction of travel|travel|movement|driv(?:es|ing)",
        },
        "travel_direction": {
            "front": r"direction of travel(?: is| was)?<2> in front|(?:travel|mov)l?~(?: slowly)? in front",
            **{
                way: rf"(?:{GO}|direction of travel)<4> {way} (?:direction|to|as)"
                for way in ("same", "opposite", "perpendicular")
            },
            "away": rf"(?:{GO}|direction of travel)<2> away from",
            "towards": rf"(?:{GO}|direction of travel)<2> towards? (?:the |an? )?(?:approaching |oncoming )?(?:vehicle|car|it)",
        },
        "line_of_sight": {
            "vehicle": r"vehicle(?<!parked vehicle)(?<!passing vehicle)(?: is| was)? (?:in|within) (?:his|her|their) line of sight",
            "": r"(?:(?:lines? of sight|gaze|eyes|attention)\b[^.;]{0,50}?|(?:look~|watch~|star~|glanc~)<2>) (?P<line_of_sight>parked vehicle|parked car|passing vehicle|vehicle|it"
            r"|direction of travel|(?:in )?(?:the )?front|ahead|forward|destination|road surface|ground|surroundings)",
        },
        "visual_status": {
            "closely watching": r"close (?:eye|watch|attention)|(?:closely|carefully|intently|attentively) (?:watch|observ|look|monitor|focus)\w*|(?:watch|observ)~<3> (?:closely|carefully|intently)",
            "glancing": r"glanc~",
            "looking around slowly": r"slowly (?:look~ around|observ~|survey~|scann?~)|look~ around slowly",
            "looking around constantly": r"(?:constantly|continu\w+ly|repeatedly) (?:look~ around|scann?~)|look~ around (?:constantly|continu\w+ly|intently)",
        },
        "aware": {
            "almost": r"(?:almost|nearly|partially)<2> (?:notic\w+|aware\w*)",
            "no": r"unaware(?:ness)?|unnotic\w+|oblivious|(?:not|no|\w+n't|without|never|yet|fail\w*|lack)<3> (?:aware(?:ness)?|notic~|recogniz~)(?! of the (?:usual|traffic|surr))",
            "yes": r"(?:(?:aware|awareness|conscious)(?: of)?|notic~|recogniz~|knowledge of)<2> (?:vehicle|car|driver|pedestrian|presence|it|them|him|her(?! \w))",
        },
        "notice": {
            "": r"lines? of sight|aware(?:ness)?|notic~|watch~|look~|gaz~|star(?:es|ed|ing)|attention|focus~|observ(?:es|ing)|distracted|realiz~|conscious"
        },
    },
    "position": {
        "orientation": {
            **{
                f"perpendicular {side}": rf"perpendicular(?:ly)?(?: to {OTHER}(?:'s \w+)?)?(?: of travel)?,?(?: and)?(?: (?:slightly|leaning|facing|oriented|turned|directed|positioned))*(?: to| towards?| on)?(?: the| its)? {side}(?: side)?(?: of {OTHER})?|towards? the {side},? perpendicular(?:ly)?"
                for side in SIDES
            },
            "perpendicular": r"perpendicular(?:ly)?",
            **{
                f"diagonal {side} {way}": rf"diagonal(?:ly)?(?: to| towards?)?(?: the)? {side}(?: side)?,?(?: and| but)?(?: facing| oriented)?(?: in)?(?: the)? {way} direction"
                for side in SIDES
                for way in ("same", "opposite")
            },
            **{
                way: rf"(?:fac~ |in )?(?:the )?{way} (?:direction|orientation|way)"
                for way in ("same", "opposite")
            },
            "": r"parallel|(?:fac~|orient\w*)(?! (?:information|details))(?: (?:towards?|away|the|in))*(?! the road)",
        },
        "position": {
            **{
                f"behind {side}": rf"(?:diagonally )?behind(?: {OTHER})?,?(?: and)?(?: slightly| diagonally)*(?: (?:to|on) (?:the|its))? {side}(?: side)?"
                rf"|(?:diagonally |{SIDE}|diagonally {SIDE}){side}(?:[- ]hand)?(?: side)?,?(?: and| but)?(?: slightly| positioned)* (?:behind|rear)|rear {side}"
                for side in SIDES
            },
            **{
                f"front {side}": rf"(?:diagonally )?in front(?: of {OTHER})?,?(?: and)?(?: slightly| diagonally| and)* (?:to|on) the {side}(?: side)?(?! of the (?:road|street))"
                rf"|(?:diagonally |(?:diagonally )?(?:positioned )?{SIDE}){side}(?:[- ]hand)?(?: side)?,?(?: and| but)?(?: slightly| positioned)* (?:in front|ahead|front)|(?:at the )?front[- ]{side}"
                for side in SIDES
            },
            **{
                side: rf"(?:diagonally )?{SIDE}{side}(?:[- ]hand)?(?! lane| turn| edge| moment| time| direction|(?: side)? of (?:the )?(?:road|street))(?: side)?"
                for side in SIDES
            },
            "front": r"(?:directly |diagonally |right |just |slightly )?(?:(?:in|at)(?: the)? front|ahead of)|directly ahead",
            "behind": r"(?<!from )(?:directly |diagonally |right |just |slightly )?behind",
            "": r"beside|next to|alongside|adjacent|diagonally",
        },
        "distance": {
            "touching": r"touch~|in contact with",
            "near": r"not (?:too |very )?far|distances?(?:(?! and|,|\.).){0,40}? (?:near|close|short)|(?:near|close|short)(?: relative)? distance|(?:close )?proximity|closely positioned|positioned closely"
            r"|(?:fairly |relatively |quite |very |too )?(?:close|near(?:by)?)(?! (?:attention|eye|miss|call|watch|to \w+ing|(?:to )?the (?:curb|edge|inter|cross|side|road|street|corner|center|middle)))",
            "far": r"distances?(?:(?! and|,|\.).){0,40}? far|(?:far|considerable|fair|great|long)(?: relative)? distance|(?:fairly |relatively |quite |very |too )?far(?: away)?|distant",
            "": r"(?:certain|moderate) distance|\d+(?:\.\d+)? ?m(?:eters?)? (?:away|from|ahead)",
        },
        "visible": {
            "partly": r"(?:partial(?:ly)?|partly|barely)<1> (?:visible|obstructed|hidden|obscured|seen|visibility)",
            "no": r"(?:not|no longer|\w+n't|never|cannot|unable|fail\w*|difficult|hard)<5> (?:visible|seen?|visibility)|(?:not|\w+n't)<3> (?:in|within)<4> (?:view|vision|sight)|view (?:does not|doesn't) (?:include|allow)|invisible|(?:outside|out of)<4> (?:view|sight|vision)"
            r"|blind spot|hidden|obstructed view",
            "yes": r"visible|(?:clear|direct|good|full|unobstructed) (?:(?:(?:field of )?view|line of sight)(?= (?:of|to)\b|[.,]|$)|visibility(?= (?:of|to)\b))(?! \w+ the (?:vehicle|car|road|street))|be seen"
            r"|(?:can|could|able to|to|allow\w*<3>)(?: clearly| easily)? see(?! the (?:vehicle|car))|(?:into?|within|inside)<4> (?:view|vision)|visibility (?:of|to) (?:the pedestrian|them|him|her)"
            r"|(?:view|visibility|sight)(?: of(?: \w+){1,2})? (?:is|was) clear|(?:field of )?view (?:of|includ\w+|captur\w+) (?:the pedestrian|them|him|her)",
            "": r"field of (?:view|vision)|visibility(?<!bright visibility)|in<2> sight|view of|unable to",
        },
    },
    "road": {
        "surface_condition": {
            "dry": "dry",
            "wet": "wet|damp",
            "icy": "icy|frozen",
            "": "slippery|snow-covered|muddy",
        },
        "incline": {
            **{
                f"{much} {way}": rf"(?:{words})<2> {way}"
                for much, words in (("gentle", r"gent\w+|slight(?:ly)?"), ("steep", "steep(?:ly)?"))
                for way in ("uphill", "downhill")
            },
            "uphill": "uphill",
            "downhill": "downhill",
            "level": r"(?:level(?:l?ed)?|flat)(?! of)(?<!brightness level)(?<!division is flat)|(?:no|without(?: any)?) (?:incl\w+|slopes?)",
            "": r"inclin(?:ed?|es)|inclination|slop~|steep|gradient|flat",
        },
        "surface": {
            **{name: name for name in ("concrete", "gravel", "dirt")},
            "asphalt": "asphalt(?:ed)?",
            "": "pav(?:ed|ement)|unpaved|cobblestones?|brick",
        },
        "setting": {
            name: rf"{name}(?: (?:area|road|street|setting|environment|location))?"
            for name in ("urban", "suburban", "rural")
        },
        "road_type": {
            "main": r"main(?= (?:[\w-]+,? ){0,3}?(?:road|street)|[.,])(?: (?:road|street))?|arterial",
            "residential": r"residential(?: (?:area|road|street))?",
            "parking lot": "parking (?:lot|area)",
            "highway": "highway|expressway|freeway",
            "alley": "alley",
            "": r"(?:local|narrow|wide|national|mountain|private|commercial)(?: (?:area|road|street))?|driveway|boulevard|avenue|t-junction|roundabout|tunnel|bridge|straight road|curv~",
        },
        "ways": {
            "two": r"(?:two|2|dual|bi)[- ]?(?:way|directional)",
            "one": r"(?:one|single|1)[- ]?(?:way|directional)",
        },
        "lanes": {
            "": r"(?P<lanes>one|two|three|four|five|six|\d|single)[- ](?:traffic )?lanes?|(?:multiple|several) lanes?|lane (?:road|markings?)|cent(?:er|re) ?line"
        },
        "traffic": {
            **{
                value: rf"(?:{words})<1> traffic|traffic(?: volume| flow| conditions?| situation)?(?: on(?: [\w-]+){{1,5}}?)?{IS}{{1,4}} (?:{words})"
                rf"|(?:{words})<1> (?:traffic )?volume|volume of traffic{IS}{{1,2}} (?:{words})|(?:{words}) (?:amount|level) of traffic|{more}"
                for value, words, more in (
                    (
                        "usual",
                        "usual|normal|typical|regular|moderate|average",
                        "usual day in terms of traffic",
                    ),
                    ("light", "light|low|minimal|sparse|little", "light volume of cars"),
                    ("heavy", "heavy|high|busy", r"congest\w+|traffic jam"),
                )
            },
            "": rf"no traffic|traffic(?: volume| flow| conditions?){IS} \w+",
        },
        "sidewalk": {"yes": r"(?:side ?walks?|footpaths?|pedestrian paths?)(?! availability)"},
        "division": {
            "": r"(?:divided|division|separated|separation)\b[^,.]{0,20}\bpedestrians?\b[^,.]{0,10}\bvehicles?|favou?rable road surface"
        },
        "roadside_strip": {"yes": r"(?:road ?side|road|side)[- ]strips?"},
        "roadside": {"": "shoulders?|roadside(?! strip)"},
        "signal": {"yes": r"(?<!turn )(?:traffic )?signals?|traffic lights?|signal(?:iz|is)ed"},
        "crossing": {"": "intersections?|junctions?|cross-?walks?|pedestrian crossings?|stop signs?"},
        "obstacle": {"yes": "obstacles?|obstructions?"},
        "object": {
            "": r"guard ?rails?|parked (?:car|vehicle|truck)s?|(?:height|width|length) of \d+(?:\.\d+)? ?m|\d+(?:\.\d+)? ?m(?:eters?)? (?:high|wide|long|in (?:height|width|length))"
            "|(?:utility |electric |telephone )?poles?|hedges?|fences?"
        },
    },
    "weather": {
        "weather": {
            "clear": r"clear(?! field| view| picture| visib| sight| line| and (?:concise|easily|understandable|precise)|,? (?:concise|easily)| understanding| manner| of\b| that| image| path)|sunny|fine weather",
            "cloudy": "cloud(?:y|s)|overcast",
            "rainy": r"(?:light )?rain(?:y|ing|s)?|drizzl\w+",
            "snowy": "snow(?:y|ing|s)?",
            "foggy": "fog(?:gy)?|misty?|hazy",
            "": "weather conditions? (?:is|are|was|were) (?:favou?rable|good|fine|normal|bad|poor|optimal|adverse)|windy|stormy?",
        },
        "light": {
            "dark": rf"(?:dark(?:ness)?|poorly (?:lit|illuminated)){NOT_CLOTHES}|brightness(?: level)?(?: of the \w+)?{IS}{{1,3}} low|low (?:brightness|light)",
            "dim": "dim(?:ly)?(?: lit)?",
            "bright": rf"(?:bright(?:ly lit)?|well[- ](?:lit|illuminated)|sunlight|daylight){NOT_CLOTHES}|high (?:level of )?brightness|brightness(?: level)?(?: of the \w+)?{IS}{{1,3}} high",
            "": "lit|lighting",
        },
        "time": {
            "": r"day ?time|night(?: ?time)?|morning|evening|afternoon|dusk|dawn|twilight|noon|sunset|sunrise"
        },
        "street_lights": {"yes": r"street ?(?:lights?|lamps?|lighting)"},
        "day": {"": r"week ?(?:days?|ends?)|(?:mon|tues|wednes|thurs|fri|satur|sun)day"},
    },
}

SYNONYMS = {
    **{"grey": "gray", "t shirt": "t-shirt", "tshirt": "t-shirt", "t-shirts": "t-shirt"},
    **{word: str(number) for number, word in enumerate("one two three four five six".split(), 1)},
    "single": "1",
    **dict.fromkeys(
        ("in front", "in the front", "the front", "front", "ahead", "forward"), "direction of travel"
    ),
    **{"it": "vehicle", "parked car": "parked vehicle", "ground": "road surface", "passing vehicle": ""},
}
NUMBERS = ("height_cm", "speed_kmh", "lanes")
# A fact is dropped if it overlaps one of these slots: "walking in the same direction" is no orientation.
HIDDEN_BY = {
    "position": ("orientation", "travel_direction", "line_of_sight"),
    "orientation": ("travel_direction",),
    "travel_direction": ("line_of_sight",),
    "motion": ("avoid", "wait"),
    "weather": ("visible",),
}


def _compile(values: dict[str, str]) -> re.Pattern:
    """Join the patterns of a slot; the group `_0`, `_1`, … that matches is the number of its value."""
    joined = "|".join(f"(?P<_{i}>{pattern})" for i, pattern in enumerate(values.values()))
    joined = joined.replace("~", r"(?:e?s|e?d|e|ing)?\b")
    joined = re.sub(r"(?<!P)<(\d)>", r"(?: [\\w'-]+){0,\1}?", joined)
    return re.compile(rf"\b(?:{joined})\b")


_PATTERNS = {slot: _compile(values) for slots in TABLE.values() for slot, values in slots.items()}
SLOT_ASPECT = {
    name: aspect
    for aspect, slots in TABLE.items()
    for slot in slots
    for name in (slot, *_PATTERNS[slot].groupindex)
    if name[0] != "_"
}

# Words that only name a topic ("As for the environment conditions, …") are blanked before facts are read.
_NO_FACT = re.compile(
    r"\b(?:as for|regarding|concerning|in terms of|with regards? to|taking|considering|despite|given)\b[^,.]{0,60}?"
    r"(?:conditions?|surroundings?|account|consideration|environment|factors|event|position|action|gender|age|height)\b(?: and \w+)?,?"
    r"|\bthe environment(?:al)? conditions?(?: (?:surrounding|of|for|in|at)\b[^,.]{0,50}?(?:event|vehicle|pedestrian|scen\w+|incident|accident|situation))?\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?:[\"'”’)]*)(?:\s+|(?=[A-Z]))")
_NOT_AN_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|approx|e\.g|i\.e|etc|vs|cf)|\b[A-Z])\.\s*$")
_TURNED = re.compile(
    r"\b(?:turn|lean|fac|orient|tilt|look|mov|walk|head|go|cross|travel|runn?)(?:e|s|es|ed|ing)?(?: \w+ly)? $"
)


def split_sentences(caption: str) -> list[str]:
    """Return the sentences of a caption; "present.Overall" is two, "1.5 m" and "e.g." end none."""
    text = " ".join(caption.split())
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        # The longest abbreviation has 7 characters. A search from the start would be quadratic in "A. B. C. …".
        if end.end() > start and not _NOT_AN_END.search(text, max(start, end.end() - 12), end.end()):
            sentences.append(text[start : end.end()].strip())
            start = end.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences


class Fact(NamedTuple):
    """The position of a fact in a sentence, and the value of its slot, "" for words without a value."""

    start: int
    end: int
    slot: str
    value: str


@lru_cache(maxsize=1 << 15)
def find_facts(sentence: str) -> tuple[Fact, ...]:
    """Return the facts of a sentence in reading order."""
    # "İ" is the only letter that lower() makes longer, which would shift all positions behind it.
    text = _NO_FACT.sub(lambda topic: " " * len(topic.group()), sentence.replace("İ", "I").lower())
    found: dict[str, list[Fact]] = defaultdict(list)
    for slot, pattern in _PATTERNS.items():
        values = list(TABLE[SLOT_ASPECT[slot]][slot])
        for match in pattern.finditer(text):
            words = {name: word for name, word in match.groupdict().items() if word and name[0] != "_"}
            stated = {name: SYNONYMS.get(word, word.replace("grey", "gray")) for name, word in words.items()}
            value = values[int(match.lastgroup[1:])]
            if value or not stated:
                stated[slot] = _yes_or_no(text, slot, *match.span()) if value == "yes" else value
            for name, value in stated.items():
                found[name].append(Fact(*match.span(), name, value))
    for slot, others in HIDDEN_BY.items():
        hidden = [fact for other in others for fact in found[other]]
        found[slot] = [f for f in found[slot] if not any(f.start < h.end and h.start < f.end for h in hidden)]
    # "turned to the left", and "a sidewalk only on the left side", unless "… of the vehicle" follows
    roadside = found["sidewalk"] or found["roadside_strip"]
    found["position"] = [
        fact
        for fact in found["position"]
        if not _TURNED.search(text, max(0, fact.start - 25), fact.start)
        and not (roadside and fact.value in SIDES and not text.startswith(" of", fact.end))
    ]
    if found["object"] or any(fact.value == "yes" for fact in found["obstacle"]):
        found |= {"position": [], "distance": []}  # of the obstacle: "an obstacle on the right side"
    if re.search(r"\bbod(?:y|ies)\b", text):  # "his body turned to the left"
        filler = ("turn", "stand")
        found["motion"] = [f for f in found["motion"] if f.value or not text.startswith(filler, f.start)]
    if found["visible"]:  # "the driver can see and notice"
        found["notice"] = []
    facts = (fact for of_slot in found.values() for fact in of_slot)
    return tuple(sorted(facts, key=lambda fact: (fact.start, -fact.end)))


_CLAUSE = re.compile(
    r";|, (?:and|which|with)\b|\b(?:but|however|although|though|while|due to|because|there (?:is|are|was|were))\b"
)
_NOT = re.compile(r"\b(?:no|not|\w+n't|without|neither|nor|lack(?:s|ed|ing)?|devoid|absence)\b")
_ABSENT = re.compile(r"[^,;]{0,30}?\b(?:absent|missing|lacking|unavailable|not)\b")
_PRESENT = re.compile(
    r"[^,;]{0,30}?\b(?:is|are|was|were)(?: \w+)? (?:present|available|on|installed|functioning|illuminat\w+|lit)\b|(?: \w+)? illuminat"
)


def _yes_or_no(text: str, slot: str, start: int, end: int) -> str:
    """Return "yes", "no", or on how many sides of the road something is: "no … on both sides" is no."""
    if slot in ("visible", "aware"):  # their patterns contain the negation
        return "yes"
    before, after = text[max(0, start - 120) : start], text[end : end + 60]
    before, after = _CLAUSE.split(before)[-1], _CLAUSE.split(after)[0]
    present = _PRESENT.match(after) and not re.search(r"\b(?:neither|nor)\b|\bno (?:visible )?$", before)
    if _ABSENT.match(after) or (_NOT.search(before) and not present):
        return "no"
    if slot not in ("sidewalk", "roadside_strip"):
        return "yes"
    if re.search(r"\b(?:one|left|right|single) side\b|\bonly (?:on )?(?:the |one |its )", before + after):
        return "one"
    return "both" if re.search(r"\b(?:both|either|each) sides?\b", before + after) else "yes"


# The motions of each subject; those of the pedestrian in the order of how much they say.
MOTIONS = {
    "pedestrian": "standing,walking,about to cross,crossing,running,rushing out,falling,colliding".split(","),
    "vehicle": "stopped,starting,straight,turning left,turning right,reversing,stopping,braking,passing,"
    "colliding".split(","),
}
_OWN_MOTIONS = {  # what the words for a motion of the other subject mean of this one
    "pedestrian": {
        "straight": "walking",
        "starting": "walking",
        "stopped": "standing",
        "stopping": "standing",
    },
    "vehicle": {"standing": "stopped"},
}
_NOT_OWN = {  # slots that describe the other subject
    "pedestrian": ("speed_kmh",),
    "vehicle": ("orientation", "travel_direction", "line_of_sight", "visual_status"),
}
_NOUNS = {
    "vehicle": "(?:vehicle|car|driver)",
    "pedestrian": "(?:pedestrian|he|she|person|m[ae]n|wom[ae]n|victim|individual)",
}
_NO_PREPOSITION = "".join(
    rf"(?<!\b{word} the )(?<!\b{word} a )" for word in "of to from behind near with towards".split()
)
_AS_SUBJECT = {  # "the vehicle is currently …" before a motion
    noun: re.compile(
        rf"{_NO_PREPOSITION}\b{words}(?:,? (?:that|which|who|is|was|has|had|been|also|then|now|about|to|\w+ly|\w+ing))*[ ,]*$"
    )
    for noun, words in _NOUNS.items()
}
_AS_OBJECT = {
    noun: re.compile(rf"(?: side)?(?: of| to| from)? (?:the |a )?{words}\b") for noun, words in _NOUNS.items()
}


def stated_values(caption: str, subject: str) -> dict[str, list]:
    """Return all values of each slot that the caption of a subject states, in reading order."""
    # "" is the subject of an index without names
    subject, other = ("vehicle", "pedestrian") if subject == "vehicle" else ("pedestrian", "vehicle")
    stated: dict[str, list] = defaultdict(list)
    for sentence in split_sentences(caption):
        text = sentence.lower()
        for start, end, slot, value in find_facts(sentence):
            if slot == "motion":
                value = _OWN_MOTIONS[subject].get(value, value)
                value = value if value in MOTIONS[subject] else ""
            if not value or slot in _NOT_OWN[subject]:
                continue
            # what the other does and notices, who is noticed, and where the other is
            does = slot in ("motion", "speed", "speed_kmh", "aware") and value != "colliding"
            if (
                (does and _AS_SUBJECT[other].search(text, max(0, start - 60), start))
                or (slot == "aware" and _AS_OBJECT[subject].search(text[start : end + 20].split(",")[0]))
                or (slot == "position" and _AS_OBJECT[subject].match(text, end))
            ):
                continue
            stated[slot].append(int(value) if slot in NUMBERS else value)
    return dict(stated)


def read_facts(caption: str, subject: str) -> dict[str, str | int]:
    """Return the facts that the caption of a subject ("vehicle" or "pedestrian") states: {slot: value}.

    The first value counts. Of a pedestrian's motions the most specific one counts, of a vehicle's the first
    action: it can have stopped at the same time.
    """
    facts = {}
    for slot, values in stated_values(caption, subject).items():
        # "elderly" beside "in his 80s" says less, as "stopped" does
        facts[slot] = next((value for value in values if value not in ("stopped", "elderly")), values[0])
        if slot == "motion" and subject == "pedestrian":
            facts[slot] = max(values, key=MOTIONS[subject].index)
    return facts


_ANY_SIDE = [{"yes", "one"}, {"yes", "both"}]  # "yes" does not state on which sides of the road
_ALIKE = {  # different values that can be true of the same scene
    "sidewalk": _ANY_SIDE,
    "roadside_strip": _ANY_SIDE,
    "visible": [{"yes", "partly"}],
    "age": [{"elderly", f"{n}0s"} for n in (6, 7, 8)],  # the checklist has no age above 80s
    "upper_garment": [{"t-shirt", "shirt"}],
    "lower_garment": [{"slacks", "pants", "trousers"}, {"short pants", "shorts"}],
}


def agree(slot: str, one: str | int, other: str | int) -> bool:
    """Return whether two values of a slot can be true of the same scene.

    Positions, motions and speeds are options that exclude each other, speeds in steps of 5 km/h.
    """
    if one == other or any({one, other} <= alike for alike in _ALIKE.get(slot, ())):
        return True
    if slot == "orientation":  # to which side it is perpendicular may be left out
        return one.startswith(f"{other} ") or other.startswith(f"{one} ")
    if slot.endswith("_color") or slot == "incline":  # "navy blue" is blue, "steep uphill" is uphill
        return f" {one} " in f" {other} " or f" {other} " in f" {one} "
    return False


# The outcome of a slot, and what a caption is by its worst outcome, the worst first.
OUTCOMES = {"wrong": "wrong", "omitted": "incomplete", "added": "extended", "equal": "equal in fact"}
Facts = Mapping[str, str | int]


def compare_facts(caption: str | Facts, reference: str | Facts, subject: str) -> dict[str, str]:
    """Return the outcome of each slot of a caption or its reference: "equal", "wrong", "omitted" or "added".

    Both are texts or their facts.
    """
    facts, expected = (read_facts(t, subject) if isinstance(t, str) else t for t in (caption, reference))
    both = [slot for slot in facts if slot in expected]
    outcomes = {slot: "equal" if agree(slot, facts[slot], expected[slot]) else "wrong" for slot in both}
    outcomes |= {slot: "omitted" for slot in expected if slot not in facts}
    return outcomes | {slot: "added" for slot in facts if slot not in expected}


def caption_kind(outcomes: Mapping[str, str]) -> str:
    """Return what a caption is by its worst outcome: "wrong", "incomplete", "extended" or "equal in fact"."""
    return next((kind for outcome, kind in OUTCOMES.items() if outcome in outcomes.values()), "equal in fact")


def fact_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return a row per caption and slot, with the index of the caption in `predictions` and the outcome.

    `predictions` has columns subject, caption and reference (a text, facts, or missing: then the caption has
    no rows), and may have a column aspect; otherwise `aspect` is that of the slot.
    """
    rows, index = [], []
    for row in predictions.itertuples():
        if not isinstance(row.reference, str | Mapping):
            continue
        texts = (row.caption, row.reference)
        facts, expected = (read_facts(t, row.subject) if isinstance(t, str) else t for t in texts)
        for slot, outcome in compare_facts(facts, expected, row.subject).items():
            aspect = getattr(row, "aspect", None) or SLOT_ASPECT[slot]
            rows.append((row.subject, aspect, slot, facts.get(slot), expected.get(slot), outcome))
            index.append(row.Index)
    return pd.DataFrame(rows, index, ["subject", "aspect", "slot", "predicted", "reference", "outcome"])


def fact_scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Count the outcomes of captions per slot and of "all" slots, and compute their precision and recall.

    Precision is the share of predicted facts that the reference states too, recall the share of its facts
    that are predicted.
    """
    table = fact_table(predictions)
    counts = pd.crosstab(table["slot"], table["outcome"]).reindex(columns=list(OUTCOMES), fill_value=0)
    counts.loc["all"] = counts.sum()
    predicted = counts["equal"] + counts["wrong"]
    return counts.assign(
        precision=counts["equal"] / (predicted + counts["added"]),
        recall=counts["equal"] / (predicted + counts["omitted"]),
    )
