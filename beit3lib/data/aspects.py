"""Split full captions into five aspects and merge them again, by readable rules.

Every sentence is assigned whole to exactly one aspect, so splitting loses nothing: `merge_aspects` returns all sentences
of the caption. A sentence gets the aspect of which it states most facts, and of two with equally many the one stated
first; a sentence without facts gets the aspect of the sentence before it. `explain_caption` shows the words that decided.
Two careful readers and these rules agree on 319 of 320 real sentences (tests/data/aspect_labels.json has 300 of them).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from beit3lib.data.schema import ASPECTS, SUBJECTS

READING_ORDER = {  # by the mean position of an aspect's sentences in real captions
    "vehicle": ("position", "moving", "pedestrian_description", "weather", "road"),
    "pedestrian": ("pedestrian_description", "weather", "road", "position", "moving"),
}

_COLORS = (
    r"(?:black|white|gr[ae]y|red|blue|navy|green|yellow|brown|beige|orange|pink|purple|khaki|cream|dark|light|"
    r"colou?rful|patterned|striped|checked|plain|denim|short|long|upper|lower)"
)
_GARMENTS = (
    r"(?:jackets?|t-?shirts?|shirts?|blouses?|sweaters?|sweatshirts?|hoodies?|cardigans?|vests?|coats?|parkas?|jumpers?|suits?|"
    r"slacks|pants|trousers|jeans|shorts|skirts?|leggings|dress(?:es)?|tops?|bottoms?|uniforms?|outfits?|clothing|clothes|"
    r"hats?|caps?|helmets?|beanies?|glasses|sunglasses|masks?|scar(?:f|ves)|gloves|shoes|sneakers|boots|sandals|"
    r"bags?|backpacks?|handbags?|rucksacks?|purses?|hair)"
)

# One pattern per kind of fact. Every match is one fact, and matches of one aspect do not overlap. Repetitions are bounded and
# alternatives exclude each other; otherwise the time of a search would be quadratic or exponential in a caption's length.
RULES: dict[str, dict[str, str]] = {
    "pedestrian_description": {
        "gender": r"\b(?:fe)?male\b|\b(?:wo)?m[ae]n\b|\b(?:boy|girl|lady|gentleman)s?\b",
        "age": r"\b(?:in (?:his|her|their) )?(?:(?:early|mid|late)[- ]?)?\d0'?s\b|\b\d+[- ]years?[- ]old\b|\baged? \d+|\belderly\b"
        r"|\bmiddle-aged\b|\b(?:young|old)(?:er)? (?:adult|person|people|man|woman|child)|\bchild(?:ren)?\b|\bteenagers?\b"
        r"|\b(?:twenties|thirties|forties|fifties|sixties|seventies)\b",
        "height": r"\b1\d\d(?:\.\d)? ?(?:cm|centimet)\w*|\b1\.\d+ ?m(?:eters?)?\b(?= tall)|\b(?:tall|short|average)(?:er)? (?:in )?(?:stature|build|height)",
        "clothing": rf"\b(?:{_COLORS}(?:[- ]colou?red)?[- ,]+(?:and )?){{0,8}}{_GARMENTS}\b",
        "build": r"\b(?:slim|stout|slender|heavy-set) build\b",
        "aid": r"\b(?:walking )?(?:canes?|sticks?)\b|\bcrutch(?:es)?\b|\bwheelchairs?\b|\bumbrellas?\b",
    },
    "moving": {
        "speed": r"\b\d+(?:\.\d+)? ?(?:km ?/ ?h|kmh|kph|kilomet\w+ (?:per|an) hour)|\b(?:high|low|slow|fast|constant|steady|moderate) speed\b"
        r"|\bspeed(?:s|ing)? up\b|\bspeed (?:is|was|of|being|at) (?:zero|0)\b|\breact(?:s|ed|ing)?\b",
        "start": r"\b(?:about|preparing|ready|getting ready|going|starting|attempting|trying|intend(?:s|ed|ing)?|plan(?:s|ned)?) to"
        r" (?:\w+ )?(?:start|move|go|turn|cross|rush|walk|run|stop|pass|enter|depart|proceed|merge|change)\w*(?: moving| walking| forward| straight)?"
        r"|\b(?:start(?:s|ed|ing)?|began|begins?|begun|beginning)(?: to)? (?:mov|go|walk|run|cross|turn|accelerat)\w*",
        "straight": r"\b(?:go(?:es|ing)?|went|mov(?:e|es|ed|ing)|driv(?:e|es|ing|en)|drove|travel\w*|proceed\w*|continu\w*|head\w*|run(?:s|ning)?)"
        r"(?: \w+){0,3}? (?:straight|ahead|forward|forwards|along|slowly|quickly|fast|backwards?)\b(?: ahead| forward)?",
        "turn": r"\bturn(?:s|ed|ing)?\b(?! on\b| off\b| signal| lane| indicator)|\bu-turn\b|\bchang(?:e|es|ed|ing) lanes?\b|\bmerg(?:e|es|ed|ing)\b"
        r"|\brevers(?:e|es|ed|ing)\b|\bback(?:s|ed|ing) up\b",
        "stop": r"\bstop(?:s|ped|ping)?\b(?! sign)|\bhalt(?:s|ed)?\b|\bstandstill\b|\bwait(?:s|ed|ing)?\b|\bidl(?:e|ing)\b",
        "brake": r"\b(?:emergency |sudden |hard )?brak(?:e|es|ed|ing)\b|\b(?:de|ac)celerat\w+|\bslow(?:s|ed|ing)? down\b|\byield\w*",
        "collide": r"\bcollid\w+|\bcollisions?\b|\bcrash\w*|\b(?:hit|hits|hitting|struck|strikes?|bump\w*)\b|\b(?:made|makes?|making|came into|in) contact\b"
        r"|\bavoid\w*|\bevad\w*|\bevasive\b|\bswerv\w*|\bdodg\w*|\bnear[- ]miss\b|\bimpact\b",
        "walk": r"\bwalk(?:s|ed|ing)?\b(?! (?:cane|stick|aid))|\b(?:running|runs|ran|jog\w*)\b|\brush(?:es|ed|ing)?\b|\bcross(?:es|ed|ing)\b(?! the line| point| signal)|\bcross\b"
        r"|\bapproach\w*|\benter(?:s|ed|ing)\b|\bstep(?:ped|ping)\b|\bsteps (?:out|in|into|off|onto|forwards?|back|aside|down)\b|\bstroll\w*|\bdash\w*|\bdart\w*|\bpass(?:es|ed|ing)\b|\bovertak\w+",
        "stand": r"\b(?:stand(?:s|ing)?|stood|remain(?:s|ed|ing)?|stay(?:s|ed|ing)?)\b(?!\s+(?:at|tall)\b|\s+\d|\s+(?:a|the) height|\s+in height)"
        r"|\bstationary\b|\bmotionless\b|\bstill\b(?= ?[,.]|$| and| on| in| at)|\bsit(?:s|ting)?\b|\bsquat\w*|\bcrouch\w*|\blying\b|\bfall(?:s|en|ing)?\b(?! under| into| within)|\bfell\b",
        "ride": r"\b(?:rid(?:es?|ing)|pushing|pulling|carrying|holding)\b",
        "travel": r"\bdirection of travel\b|\btravel(?:s|ing|ling|ed|led)?\b|\bmov(?:es?|ed|ing)\b|\bmovement\b|\bdriv(?:es|ing)\b|\bproceed\w*",
        "sight": r"\blines? of sight\b(?:[^,.]{0,25}\bfocus(?:es|ed|ing)?\b)?",
        "notice": r"\b(?:un)?aware(?:ness)?\b|\b(?:un)?notic(?:e|es|ed|ing)\b|\bwatch(?:es|ed|ing)\b|\blook(?:s|ed|ing)?\b|\bglanc\w+|\bgaz\w+|\bstar(?:es|ed|ing)\b"
        r"|\battention\b|\bfocus(?:es|ed|ing)?\b|\bobserv(?:es|ing)\b|\bdistracted\b|\boblivious\b|\brealiz\w+|\bconscious\b",
    },
    "position": {
        "side": r"\b(?:diagonally )?(?:(?:to|on|at|from) (?:the|its|his|her|their) )?(?:front )?(?:left|right)(?:[- ]hand)?(?: rear| front)?(?: side)?(?: and)?,? ?"
        r"(?:(?:slightly |diagonally )?(?:in front|behind|of (?:the|it|them|him|her)|ahead))+"
        r"|\b(?:on|to|at) (?:the|its|his|her) (?:left|right)(?: side)?\b(?! lane| turn| of the road| side of the road| edge)"
        r"|\b(?:directly |diagonally |right |just |slightly )?in front\b|\bbehind\b|\bbeside\b|\bnext to\b|\balongside\b|\bahead of\b|\badjacent\b|\bdiagonally\b",
        "distance": r"\b(?:relative )?distances?\b(?:(?! and|,|\.).){0,30}?\b(?:near|close|far|short|\d+(?:\.\d+)? ?m)\w*|\b(?:near|close|far|short|moderate|considerable|fair|certain|great|long)(?: relative)? distance\b"
        r"|\bclose proximity\b|\b(?:fairly |relatively |quite |very |some|too )?(?:close|near|far)(?:by)?\b(?: (?:to|from|away))?|\b\d+(?:\.\d+)? ?m(?:eters?)? (?:away|from|ahead)",
        "orientation": r"\bperpendicular\b|\b(?:same|opposite) direction\b|\bparallel\b|\b(?:facing|faces?|faced|orient\w*)(?! (?:information|details))\b(?: (?:towards?|away|the|in))*(?! the road)",
        "view": r"\b(?:in)?visible\b|(?<!bright )\bvisibility\b|\bfield of (?:view|vision)\b|\bin (?:\w+ ){0,2}(?:view|sight)\b|\b(?:can|could|cannot|can't|could not|able to|unable to|to) (?:be )?see(?:n)?\b"
        r"|\bclear view\b|\bout of (?:view|sight)\b|\bblind spot\b|\bview of\b|\bhidden\b|\bobstructed view\b",
    },
    "road": {
        "condition": r"\b(?:dry|wet|icy|slippery|frozen|snow-covered|muddy|damp)\b",
        "incline": r"\b(?:level(?:ed|led)?|flat|inclin(?:ed?|es)|inclination|slop(?:e|es|ed|ing)|uphill|downhill|steep|gradient)\b(?! of)(?<!brightness level)",
        "surface": r"\b(?:asphalt(?:ed)?|concrete|gravel|pav(?:ed|ement)|unpaved|dirt|cobblestones?|brick)\b",
        "kind": r"\b(?:residential|urban|rural|suburban|main|arterial|local|narrow|wide|national|mountain|private|commercial)\b(?: (?:area|road|street))?"
        r"|\b(?:highway|expressway|freeway|alley|parking lot|driveway|boulevard|avenue|t-junction|roundabout|tunnel|bridge)\b|\bstraight road\b|\bcurv(?:e|es|ed)\b",
        "lanes": r"\b(?:two|one|single|2|1|dual|bi)[- ]?(?:way|directional)\b|\b(?:one|two|three|four|five|six|\d|single|multiple|several)[- ](?:traffic )?lanes?\b|\blane (?:road|markings?)\b|\bcent(?:er|re) ?line\b",
        "traffic": r"\b(?:usual|light|heavy|normal|low|high|moderate|busy|little|no|sparse|regular|average)(?: \w+)? traffic\b|\btraffic(?: volume| flow| conditions?)?(?: on \w+ \w+)? (?:is|was|are|were|being|appears|seems|remains?)(?: relatively| quite| also)? \w+"
        r"|\btraffic volume (?:of|at|as)\b|\b(?:usual|light|heavy|normal|low|high) (?:traffic )?volume\b|\b(?:congest\w+|traffic jam)\b",
        "sidewalk": r"\b(?:side ?walks?|footpaths?|pedestrian paths?)\b",
        "division": r"\b(?:divided|division|separated|separation)\b[^,.]{0,20}\bpedestrians?\b[^,.]{0,10}\bvehicles?\b|\bfavou?rable road surface\b",
        "strip": r"\b(?:road ?side|side)[- ]strips?\b|\bshoulders?\b|\broadside\b(?! strip)",
        "crossing": r"\bintersections?\b|\bjunctions?\b|\bcross-?walks?\b|\bpedestrian crossings?\b|\btraffic (?:lights?|signals?)\b|\b(?:with|without|no|a) (?:a )?signals?\b|\bstop signs?\b|\bsignal(?:iz|is)ed\b",
        "obstacle": r"\bobstacles?\b|\bobstructions?\b|\bguard ?rails?\b|\bparked (?:car|vehicle|truck)s?\b|\b(?:height|width|length) of \d+(?:\.\d+)? ?m\b|\b\d+(?:\.\d+)? ?m(?:eters?)? (?:high|wide|long|in (?:height|width|length))"
        r"|\b(?:utility |electric |telephone )?poles?\b|\bhedges?\b|\bfences?\b",
    },
    "weather": {
        "weather": r"\bweather conditions? (?:is|are|was|were) (?:favou?rable|good|fine|normal|bad|poor|optimal|adverse)\b|\bclear\b(?! field| view| picture| visib| sight| line| and (?:concise|easily|understandable|precise)|,? (?:concise|easily)| understanding| manner| of\b| image| picture| path)|\b(?:sunny|cloud(?:y|s)|overcast|rain(?:y|ing|s)?|snow(?:y|ing|s)?|fog(?:gy)?|mist(?:y)?|windy|storm(?:y)?|drizzl\w+|fine weather|hazy)\b",
        "light": r"\b(?:bright|dark|dim|lit|lighting|well-lit|dimly lit|poorly lit|sunlight|brightly lit)\b(?!,? ?(?:blue|green|red|gr[ae]y|brown|navy|colou?red|clothes|clothing|jacket|t-?shirt|shirt|slacks|pants))",
        "time": r"\b(?:day ?time|night(?: ?time)?|morning|evening|afternoon|dusk|dawn|twilight|noon|sunset|sunrise)\b",
        "street lights": r"\bstreet ?(?:lights?|lamps?|lighting)\b",
        "day": r"\bweek ?(?:days?|ends?)\b|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
    },
}
_RULES = {
    aspect: {n: re.compile(p, re.IGNORECASE) for n, p in kinds.items()} for aspect, kinds in RULES.items()
}

# Words that only name a topic ("As for the environment conditions, …") are blanked before facts are counted.
_NO_FACT = re.compile(
    r"\b(?:as for|regarding|concerning|in terms of|with regards? to|taking|considering|despite|given)\b[^,.]{0,60}?"
    r"(?:conditions?|surroundings?|account|consideration|environment|factors|event|position|action|gender|age|height)\b(?: and \w+)?,?"
    r"|\bthe environment(?:al)? conditions?(?: (?:surrounding|of|for|in|at)[^,.]{0,50}?(?:event|vehicle|pedestrian|scene|incident|accident))?\b"
    r"|\b(?:sur)?roundings?\b|\bvehicle's surroundings\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?:[\"'”’)]*)(?:\s+|(?=[A-Z]))")
_NOT_AN_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|approx|e\.g|i\.e|etc|vs|cf)|\b[A-Z])\.\s*$")


class Decision(NamedTuple):
    """The aspect of a sentence, the number of facts it states per aspect, and the words that decided."""

    aspect: str | None
    facts: dict[str, int]
    rule: str


def split_sentences(caption: str) -> list[str]:
    """Return the sentences of a caption; "present.Overall" is two, "1.5 m" and "e.g." end none."""
    text = " ".join(caption.split())
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        # the longest abbreviation has 7 characters; a search from the start would be quadratic in "A. B. C. …"
        if end.end() > start and not _NOT_AN_END.search(text, max(start, end.end() - 12), end.end()):
            sentences.append(text[start : end.end()].strip())
            start = end.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences


def classify_sentence(sentence: str, subject: str) -> Decision:
    """Return the aspect of which a sentence states most facts, on a tie the one stated first; None if it states no fact."""
    text = _NO_FACT.sub(lambda found: " " * len(found.group()), sentence)
    found = {aspect: _find_facts(text, kinds) for aspect, kinds in _RULES.items()}
    _resolve_ambiguity(text, found)
    facts = {aspect: len(spans) for aspect, spans in found.items() if spans}
    if not facts:
        return Decision(None, {}, "no fact")
    most = max(facts.values())
    leading = min((a for a in facts if facts[a] == most), key=lambda aspect: found[aspect][0][0])
    words = ", ".join(f"{kind}: {text[start:end].strip()!r}" for start, end, kind in found[leading])
    return Decision(leading, facts, words)


Fact = tuple[int, int, str]  # start and end in the text, kind


def _find_facts(text: str, kinds: dict[str, re.Pattern]) -> list[Fact]:
    """Return non-overlapping matches in reading order; of two that overlap, the earlier or else the longer one."""
    matches = [(m.start(), m.end(), kind) for kind, pattern in kinds.items() for m in pattern.finditer(text)]
    kept: list[Fact] = []
    for match in sorted(matches, key=lambda match: (match[0], -match[1])):
        if not kept or match[0] >= kept[-1][1]:
            kept.append(match)
    return kept


def _resolve_ambiguity(text: str, found: dict[str, list[Fact]]) -> None:
    """Remove facts whose words mean something else in this sentence: "walking in the same direction" is no position."""
    walks = [f for f in found["moving"] if f[2] in ("walk", "straight", "travel", "start")]
    if walks:
        found["position"] = [
            f for f in found["position"] if not re.match(r"(?:same|opposite) direction", text[f[0] : f[1]])
        ]
    if any(kind == "obstacle" for *_, kind in found["road"]):
        found["position"] = [f for f in found["position"] if f[2] not in ("side", "distance")]
    if re.search(r"\bbod(?:y|ies)\b", text):
        found["moving"] = [f for f in found["moving"] if not re.match(r"turn|stand", text[f[0] : f[1]])]
    if any(kind == "view" for *_, kind in found["position"]):
        found["moving"] = [f for f in found["moving"] if f[2] != "notice"]


def explain_caption(caption: str, subject: str) -> list[tuple[str, Decision]]:
    """Return every sentence of a caption with its decision."""
    sentences = split_sentences(caption)
    decisions = [classify_sentence(sentence, subject) for sentence in sentences]
    # sentences without facts at the beginning get the aspect of the first sentence that has one
    before = next((d.aspect for d in decisions if d.aspect), READING_ORDER[subject][0])
    explained = []
    for sentence, decision in zip(sentences, decisions, strict=True):
        if decision.aspect is None:
            decision = Decision(before, {}, "no fact: same aspect as the sentence before")
        before = decision.aspect
        explained.append((sentence, decision))
    return explained


def split_caption(caption: str, subject: str) -> dict[str, str]:
    """Return {aspect: its sentences, in their order}; aspects that the caption does not mention are absent."""
    _check_subject(subject)
    parts: dict[str, list[str]] = {}
    for sentence, decision in explain_caption(caption, subject):
        parts.setdefault(decision.aspect, []).append(sentence)
    return {aspect: " ".join(parts[aspect]) for aspect in ASPECTS if aspect in parts}


def merge_aspects(parts: Mapping[str, str], subject: str) -> str:
    """Join the texts of aspects to one caption, in the order of real captions of the subject.

    A part without a full stop at its end comes last, because its last sentence would run into the next part.
    """
    _check_subject(subject)
    unknown = sorted(set(parts) - set(ASPECTS))
    if unknown:
        raise ValueError(f"parts: expected aspects {', '.join(ASPECTS)}; found {', '.join(unknown)}")
    texts = [parts[aspect].strip() for aspect in READING_ORDER[subject] if parts.get(aspect, "").strip()]

    def runs_on(text: str) -> bool:  # into a sentence that follows
        return len(split_sentences(f"{text} Next.")) == len(split_sentences(text))

    return " ".join(sorted(texts, key=runs_on))  # sorting is stable: all others keep their order


def _check_subject(subject: str) -> None:
    if subject not in SUBJECTS:
        raise ValueError(f"subject: expected one of {', '.join(SUBJECTS)}, found {subject!r}")
