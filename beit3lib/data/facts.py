"""Read captions as facts, {slot: value}, and compare them with their references slot by slot.

Metrics of word overlap do not tell a paraphrase from an error; facts do. The slots are those of the checklist that the
annotators of WTS filled in. `TABLE` is the only place where words of captions get a meaning: the aspect of a sentence
(`aspects.py`), contradictions between captions (`viz/marks.py`) and the errors of the sample (`sample/truth.py`) follow from it.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import pandas as pd

COLORS = (
    r"(?:(?:light|dark|navy|pale|bright|deep)[- ])?(?:black|white|gr[ae]y|red|blue|navy|green|yellow|brown|beige|orange|pink"
    r"|purple|khaki|cream|turquoise|silver)\b"
)
CUT = r"(?:colou?rful|patterned|striped|checked|plain|denim|(?:short|long)[- ]sleeved?|long|upper|lower)"
STYLE = rf"(?:(?:{COLORS}|colou?red|and|{CUT})[- ,]{{1,2}})"
UPPER = (
    r"jackets?|t[- ]?shirts?|shirts?|blouses?|sweaters?|sweatshirts?|hoodies?|cardigans?|vests?|coats?|parkas?|jumpers?|suits?"
    r"|tops?|uniforms?|dress(?:es)?"
)
LOWER = r"(?:short )?pants|slacks|trousers|jeans|shorts|skirts?|leggings|bottoms?"
OTHER_CLOTHES = (
    r"outfits?|clothing|clothes|masks?|scar(?:f|ves)|gloves|shoes|sneakers|boots|sandals|bags?|backpacks?|handbags?|rucksacks?|purses?|hair"
)
NO_COLOR_OF_CLOTHES = (
    r"(?!,? ?(?:blue|green|red|gr[ae]y|brown|navy|colou?red|clothes|clothing|jacket|t-?shirt|shirt|slacks|pants))"
)


def clothes(slot: str, garments: str) -> str:
    """Return the pattern of a garment with its color; words such as "striped" may stand between them."""
    return rf"(?:(?P<{slot}_color>{COLORS})[- ,]{{1,2}}{STYLE}{{0,5}}|(?:{CUT}[- ]){{0,3}})(?P<{slot}_garment>{garments})\b"


VERBS = r"(?:go(?:es|ing)?|went|mov(?:e|es|ed|ing)|driv(?:e|es|ing|en)|drove|travel\w*|proceed\w*|continu\w*|head(?:s|ed|ing)?|walk\w*|run\w*|cross(?:es|ed|ing)?)"
SOON = r"(?:about|poised|prepar\w+|ready|going|starting|attempting|trying|intend\w*|intention|plan(?:s|ned|ning)?|verge|brink|wait\w*)(?: \w+)? (?:to|of|for)"
SIGHT = r"(?:(?:lines? of sight|gaze|eyes)\b[^.;]{0,50}?|(?:look(?:s|ed|ing)?|watch(?:es|ed|ing)?|star(?:es|ed|ing)|glanc\w+)(?: \w+){0,2}?) "
BESIDE = r"(?:(?:to|on|at|in|from) (?:the|its|his|her|their|a) )?"
PERPENDICULAR = (
    r"perpendicular(?:ly)?(?: to (?:the |a )?(?:vehicle|car|it)(?:'s \w+)?)?(?:,? and)?(?: (?:slightly|leaning|facing|oriented|turned"
    r"|directed|positioned))*(?: to| towards?)?(?: the| its)? "
)
IS = r"(?: (?:is|was|are|were|being|of|at|as|seems?|appears?|remain(?:s|ed)?|described|stated|reported|considered|classified|to|be|also|relatively|quite|very))"

# {aspect: {slot or kind: {value: pattern}}}. Every match is one fact of the aspect. Patterns begin at the start of a word.
# A value "" has no meaning of its own; named groups are slots whose values are the words of the group. Repetitions are
# bounded and alternatives exclude each other; otherwise the time of a search would be quadratic in a caption's length.
TABLE: dict[str, dict[str, dict[str, str]]] = {
    "pedestrian_description": {
        "gender": {
            "female": r"female\b|wom[ae]n\b|(?:girl|lady|ladies)s?\b",
            "male": r"male\b|m[ae]n\b|(?:boy|gentleman)s?\b",
        },
        "age": {
            "child": r"child(?:ren)?\b|aged? \d\b|\d[- ]years?[- ]old\b",
            **{
                f"{decade}0s": rf"(?:in (?:his|her|their) )?(?:(?:early|mid|late)[- ]?)?(?:{decade}0'?s|{word})\b"
                rf"|{decade}\d[- ]years?[- ]old\b|aged? {decade}\d\b"
                for decade, word in enumerate(
                    ("teen(?:s|ager|agers)", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties"), 1
                )
            },
            "elderly": r"elderly\b",
            "": r"middle-aged\b|(?:young|old)(?:er)? (?:adult|person|people)",
        },
        "height_cm": {"": r"(?P<height_cm>1\d\d)(?:\.\d)?[- ]?(?:cm|centimet)\w*|1\.\d+ ?m(?:eters?)?\b(?= tall)"},
        "stature": {"": r"(?:tall|short|average)(?:er)? (?:in )?(?:stature|build|height)|(?:slim|stout|slender|heavy-set) build\b"},
        "upper": {"": clothes("upper", UPPER)},
        "lower": {"": clothes("lower", LOWER)},
        "hat": {"yes": rf"(?:(?P<hat_color>{COLORS})[- ,]{{1,2}}{STYLE}{{0,5}})?(?:hats?|caps?|helmets?|beanies?)\b"},
        "glasses": {"yes": r"(?:sun)?glasses\b"},
        "clothing": {"": rf"(?:{COLORS}[- ,]{{1,2}}{STYLE}{{0,5}})?(?:{OTHER_CLOTHES})\b"},
        "cane": {"yes": r"(?:walking )?(?:canes?|sticks?)\b"},
        "aid": {"": r"crutch(?:es)?\b|wheelchairs?\b|umbrellas?\b"},
    },
    "moving": {
        "speed_kmh": {
            "0": r"speed (?:is|was|of|being|at) (?:zero|0)\b",
            "": r"(?P<speed_kmh>\d+)(?:\.\d+)? ?(?:km ?/ ?h|kmh|kph|kilomet\w+ (?:per|an) hour)|(?:constant|steady) speed\b|speed(?:s|ing)? up\b"
            r"|react(?:s|ed|ing)?\b",
        },
        "speed": {
            "slow": r"(?:slow|low) (?:speed|pace)\b|slow(?:ly)?\b(?<!around slowly)(?! (?:look|glanc|observ|scan|survey|watch))",
            "fast": r"(?:slightly )?high(?:er)?(?: than \w+)? speed\b|speed (?:is|was)(?: \w+)? (?:high|fast)(?:er)?\b|slightly (?:high|fast)(?:er)?\b"
            r"|fast\b|quick(?:ly)?\b(?! deci)|rapidly\b|briskly\b|hurried\w*",
            "normal": r"(?:normal|moderate|regular|average|usual)(?: walking)? (?:speed|pace)\b|(?:speed|pace) (?:is|was|of|being) (?:\w+ )?normal\b",
        },
        "avoid": {
            "": r"(?:not|\w+n't|never|without) (?:yet |\w+ly )?(?:collid|hit|cross|stop|turn|brak|start|revers|pass|walk|run)\w*|(?:avoid|avert|prevent)\w*(?: \w+){0,4}? (?:collisions?|contact|accidents?)\b|(?:potential|possible|imminent) collisions?\b"
            r"|avoid\w*|evad\w*|evasive\b|swerv\w*|dodg\w*|near[- ]miss\b|impact\b"
        },
        "wait": {"": r"wait(?:s|ed|ing)?\b(?: for(?: \w+){1,4} to \w+ \w+)?"},
        "motion": {
            "about to cross": rf"{SOON} (?:\w+ )?cross(?:ing)?\b",
            "stopping": rf"(?:{SOON} )(?:come to a )?(?:stop|halt)\b|(?:slowing|coming) (?:down )?to a (?:stop|halt)\b|stopping\b",
            "rushing out": rf"(?:{SOON} )?(?:rush(?:es|ed|ing)?|dash(?:es|ed|ing)?|dart(?:s|ed|ing)?)\b(?: out)?",
            "reversing": rf"(?:{SOON} )?(?:revers(?:e|es|ed|ing)\b|back(?:s|ed|ing)? up\b|mov(?:e|es|ed|ing) backwards?\b)",
            **{
                f"turning {side}": rf"(?:(?:{SOON}|start(?:s|ed|ing)?(?: to)?|began to) )?(?:turn(?:s|ed|ing)?(?: to the)? {side}\b|{side}[- ]turn\b)"
                for side in ("left", "right")
            },
            "starting": rf"{SOON} (?:start|move|go|depart|proceed|initiat\w*|commenc\w*)\w*(?: (?:moving|walking|movement|forward|straight))?"
            r"|(?:start(?:s|ed|ing)?|began|begins?|begun|beginning|initiat\w+|commenc\w+)(?: to| its)? (?:mov|go|accelerat|driv|proceed)\w*",
            "crossing": r"cross(?:es|ed|ing)?\b(?! the line| point| signal| destination)",
            "straight": rf"{VERBS}(?: \w+){{0,3}}? (?:straight|ahead|forwards?|along)\b(?: ahead| forward)?",
            "braking": r"(?:emergency |sudden |hard )?(?:brak(?:e|es|ed|ing)|brakes)\b",
            "colliding": r"collid\w+|collisions?\b|crash\w*|(?:hit|hits|hitting|struck|strikes?|bump\w*)\b|(?:made|makes?|making|came into|in) contact\b",
            "passing": rf"(?:{SOON} pass|pass(?:es|ed|ing))\b(?! (?:vehicle|car))|overtak\w+",
            "falling": r"fall(?:s|en|ing)?\b(?! under| into| within)|fell\b|thrown\b|stumbl\w+|tripp\w+",
            "running": r"(?:running|runs|ran|jog\w*)\b",
            "stopped": r"stop(?:s|ped)?\b(?! sign)|halt(?:s|ed)?\b|standstill\b|stationary\b|not moving\b|parked\b(?! (?:car|vehicle|truck))|idl(?:e|ing)\b",
            "standing": r"(?:stand(?:s|ing)?|stood|remain(?:s|ed|ing)?|stay(?:s|ed|ing)?) (?:completely )?(?:still|motionless)\b|motionless\b"
            r"|standing\b(?!\s+(?:at|tall|approx|around|about|in his|in her)\b|\s+\d|\s+(?:a|the) height|\s+in height)",
            "walking": rf"(?:{SOON} |start(?:s|ed|ing)?(?: to)? |beg[ai]n(?:s|ning)?(?: to)? )?(?:walk(?:s|ed|ing)?\b(?! (?:cane|stick|aid))|stroll\w*|mov(?:es?|ed|ing)\b|travel(?:s|ing|ling|ed|led)\b|proceed\w*)",
            "": r"turn(?:s|ed|ing)?\b(?! on\b| off\b| signal| lane| indicator)|u-turn\b|chang(?:e|es|ed|ing) lanes?\b|merg(?:e|es|ed|ing)\b"
            r"|(?:de|ac)celerat\w+|slow(?:s|ed|ing)? down\b|yield\w*|approach\w*|enter(?:s|ed|ing)\b|step(?:ped|ping)\b|steps (?:out|in|into|off|onto|forwards?|back|aside|down)\b"
            r"|(?:stands?|stood|remain(?:s|ed|ing)?|stay(?:s|ed|ing)?)\b(?!\s+(?:at|tall)\b|\s+\d|\s+(?:a|the) height|\s+in height)"
            r"|still\b(?= ?[,.]|$| and| on| in| at)|sit(?:s|ting)?\b|squat\w*|crouch\w*|lying\b|(?:rid(?:es?|ing)|pushing|pulling|carrying|holding)\b"
            r"|direction of travel\b|travel\b|movement\b|driv(?:es|ing)\b",
        },
        "travel_direction": {
            "front": r"direction of travel(?: (?:is|was|being))?(?: \w+){0,2}? in front\b|(?:travel|mov)(?:s|e|es|ed|ing|ling)?(?: slowly)? in front\b",
            **{
                way: rf"(?:{VERBS}|direction of travel)(?: \w+){{0,4}}? {way}(?: direction\b| to\b| as\b)"
                for way in ("same", "opposite", "perpendicular")
            },
            "away": rf"(?:{VERBS}|direction of travel)(?: \w+){{0,2}}? away from\b",
            "towards": rf"(?:{VERBS}|direction of travel)(?: \w+){{0,2}}? towards? (?:the |an? )?(?:approaching |oncoming )?(?:vehicle|car|it)\b",
        },
        "line_of_sight": {
            "": rf"{SIGHT}(?P<line_of_sight>parked vehicle|parked car|passing vehicle|vehicle|towards it|it|direction of travel|in front|ahead|forward"
            r"|destination|road surface|ground|surroundings)\b"
        },
        "visual_status": {
            "closely watching": r"(?:closely|carefully|intently|attentively) (?:watch|observ|look|monitor|focus)\w*|(?:watch|observ)\w*(?: \w+){0,3}? (?:closely|carefully|intently)\b",
            "glancing": r"glanc\w+",
            "looking around slowly": r"(?:slowly|carefully) (?:look(?:s|ed|ing)? around|observ\w+|survey\w+|scann?\w+)|look(?:s|ed|ing)? around (?:slowly|carefully)",
            "looking around constantly": r"(?:constantly|continuously|continually|repeatedly) look(?:s|ed|ing)? around|look(?:s|ed|ing)? around (?:constantly|continuously|intently)",
        },
        "aware": {
            "almost": r"almost (?:\w+ ){0,2}?(?:notic\w+|aware\w*)",
            "no": r"unaware(?:ness)?\b|unnotic\w+|oblivious\b|(?:not|no|\w+n't|without|never|yet|fail\w*|lack)(?: \w+){0,3}? (?:aware(?:ness)?|notic(?:e|es|ed|ing)|recogniz\w+)\b(?! of the (?:usual|traffic|surr))",
            "yes": r"(?:aware(?:ness)?(?: of)?|notic(?:e|es|ed|ing)|recogniz\w+|knowledge of)(?: \w+){0,2}? (?:vehicle|car|driver|pedestrian|presence|it|them|him|her)\b",
        },
        "notice": {
            "": r"lines? of sight\b|aware(?:ness)?\b|notic(?:e|es|ed|ing)\b|watch(?:es|ed|ing)\b|look(?:s|ed|ing)?\b|gaz\w+|star(?:es|ed|ing)\b"
            r"|attention\b|focus(?:es|ed|ing)?\b|observ(?:es|ing)\b|distracted\b|realiz\w+|conscious\b"
        },
    },
    "position": {
        "orientation": {
            **{f"perpendicular {side}": rf"{PERPENDICULAR}{side}\b(?: side)?(?: of (?:it|the vehicle))?" for side in ("left", "right")},
            "perpendicular": r"perpendicular(?:ly)?\b",
            **{
                f"diagonal {side} {way}": rf"diagonal(?:ly)?(?: to| towards?)?(?: the)? {side}(?: side)?,?(?: and| but)?(?: facing| oriented)?(?: in)?(?: the)? {way} direction\b"
                for side in ("left", "right")
                for way in ("same", "opposite")
            },
            "same": r"(?:facing |faced |in )?(?:the )?same direction\b",
            "opposite": r"(?:facing |faced |in )?(?:the )?opposite direction\b",
            "": r"parallel\b|(?:facing|faces?|faced|orient\w*)(?! (?:information|details))\b(?: (?:towards?|away|the|in))*(?! the road)",
        },
        "position": {
            **{
                f"behind {side}": rf"behind(?: (?:the |a )?(?:vehicle|pedestrian|it|them|car))?(?:,? and)?(?: slightly| diagonally)*(?: (?:to|on) (?:the|its))? {side}\b(?: side)?"
                rf"|(?:diagonally )?{BESIDE}{side}(?:[- ]hand)?(?: side)?,?(?: and| but)?(?: slightly| positioned)* (?:behind|rear)\b|rear {side}\b"
                for side in ("left", "right")
            },
            **{
                f"front {side}": rf"in front(?: of (?:the |a )?(?:vehicle|pedestrian|it|them|car))?,?(?: and)?(?: slightly| diagonally)* (?:to|on) the {side}\b(?: side)?(?! of the (?:road|street))"
                rf"|(?:diagonally )?(?:positioned )?{BESIDE}{side}(?:[- ]hand)?(?: side)?,?(?: and| but)?(?: slightly| positioned)* (?:in front|ahead|front)\b|front[- ]{side}\b"
                for side in ("left", "right")
            },
            **{
                side: rf"(?:diagonally )?(?:on|to|at|from) (?:the|its|his|her|their) {side}(?:[- ]hand)?\b(?! lane| turn| edge|(?: side)? of (?:the )?(?:road|street))(?: side)?"
                for side in ("left", "right")
            },
            "front": r"(?:directly |diagonally |right |just |slightly )?(?:in front|ahead of)\b|directly ahead\b",
            "behind": r"(?:directly |diagonally |right |just |slightly )?behind\b",
            "": r"beside\b|next to\b|alongside\b|adjacent\b|diagonally\b",
        },
        "distance": {
            "touching": r"touch(?:es|ed|ing)\b|in contact with\b",
            "near": r"(?:relative )?distances?\b(?:(?! and|,|\.).){0,40}?\b(?:near|close|short)\b|(?:near|close|short)(?: relative)? distance\b|close proximity\b|(?:in )?proximity\b"
            r"|(?:fairly |relatively |quite |very |too )?(?:closely (?:to|positioned)|positioned closely|close|near(?:by)?)\b(?! (?:attention|eye|miss|watch|observ))",
            "far": r"(?:relative )?distances?\b(?:(?! and|,|\.).){0,40}?\bfar\b|(?:far|considerable|fair|great|long)(?: relative)? distance\b|(?:fairly |relatively |quite |very |too )?far\b(?: away)?",
            "": r"(?:certain|moderate) distance\b|\d+(?:\.\d+)? ?m(?:eters?)? (?:away|from|ahead)",
        },
        "visible": {
            "partly": r"(?:partial(?:ly)?|partly|barely)(?: \w+)? (?:visible|obstructed|hidden|obscured|seen|visibility)\b",
            "no": r"(?:not|\w+n't|never|cannot|can't|unable)(?: \w+){0,5}? (?:visible|seen?|visibility)\b|invisible\b|out(?:side)?(?: of)?(?: [\w']+){0,3}? (?:view|sight|vision)\b|blind spot\b|hidden\b"
            r"|obstructed view\b|(?:not|\w+n't)(?: \w+){0,3}? (?:in|within)(?: [\w']+){0,4}? (?:view|vision|sight)\b",
            "yes": r"visible\b|(?:clear|direct|good|full|unobstructed) (?:(?:field of )?view|sight|visibility|line of sight)(?: of| to)\b(?! the (?:vehicle|car|road|street))|clear view\b(?! of the (?:vehicle|car|road|street))|view (?:includ|captur)\w+|(?<!obstructed )view of (?:the pedestrian|them|him|her)\b|(?:view|visibility|sight)(?: of(?: \w+){1,2})? (?:is|was) clear\b"
            r"|(?:can|could|able to|to|allow\w*(?: \w+){0,3})(?: clearly| easily)? see\b|be seen\b|(?:in|within|inside)(?: [\w']+){0,4}? (?:view|vision)\b|visibility (?:of|to) (?:the pedestrian|them|him|her)\b",
            "": r"field of (?:view|vision)\b|(?<!bright )visibility\b|in (?:\w+ ){0,2}sight\b|view of\b|unable to\b",
        },
    },
    "road": {
        "surface_condition": {"dry": r"dry\b", "wet": r"wet\b|damp\b", "icy": r"icy\b|frozen\b", "": r"(?:slippery|snow-covered|muddy)\b"},
        "incline": {
            **{
                f"{much} {way}": rf"(?:{words})(?: \w+){{0,2}}? {way}\b"
                for much, words in {"gentle": "gent\\w+|slight(?:ly)?", "steep": r"steep(?:ly)?"}.items()
                for way in ("uphill", "downhill")
            },
            "uphill": r"uphill\b",
            "downhill": r"downhill\b",
            "level": r"(?:level(?:ed|led)?|flat)\b(?! of)(?<!brightness level)(?<!division is flat)|no (?:incl\w+|slopes?)\b",
            "": r"(?:inclin(?:ed?|es)|inclination|slop(?:e|es|ed|ing)|steep|gradient|flat)\b",
        },
        "surface": {
            "asphalt": r"asphalt(?:ed)?\b",
            "concrete": r"concrete\b",
            "gravel": r"gravel\b",
            "dirt": r"dirt\b",
            "": r"(?:pav(?:ed|ement)|unpaved|cobblestones?|brick)\b",
        },
        "setting": {
            **{name: rf"{name}(?: (?:area|road|street|setting|environment|location))?\b" for name in ("urban", "suburban", "rural")},
        },
        "road_type": {
            "main": r"main\b(?= (?:[\w-]+,? ){0,3}?(?:road|street)|[.,])(?: (?:road|street))?|arterial\b",
            "residential": r"residential\b(?: (?:area|road|street))?",
            "parking lot": r"parking (?:lot|area)\b",
            "highway": r"(?:highway|expressway|freeway)\b",
            "alley": r"alley\b",
            "": r"(?:local|narrow|wide|national|mountain|private|commercial)\b(?: (?:area|road|street))?|(?:driveway|boulevard|avenue|t-junction|roundabout|tunnel|bridge)\b"
            r"|straight road\b|curv(?:e|es|ed)\b",
        },
        "ways": {"two": r"(?:two|2|dual|bi)[- ]?(?:way|directional)\b", "one": r"(?:one|single|1)[- ]?(?:way|directional)\b"},
        "lanes": {
            "": r"(?P<lanes>one|two|three|four|five|six|\d|single)[- ](?:traffic )?lanes?\b|(?:multiple|several)[- ](?:traffic )?lanes?\b|lane (?:road|markings?)\b|cent(?:er|re) ?line\b"
        },
        "traffic": {
            value: rf"(?:{words})(?: \w+)? traffic\b|traffic(?: volume| flow| conditions?| situation)?(?: on(?: [\w-]+){{1,5}}?)?{IS}{{1,4}} (?:{words})\b"
            rf"|(?:{words})(?: \w+)? (?:traffic )?volume\b|volume of traffic{IS}{{1,2}} (?:{words})\b" + rest
            for value, words, rest in (
                ("usual", "usual|normal|typical|regular|moderate|average", r"|traffic(?: [\w-]+){0,8}? remain as usual\b|usual day in terms of traffic\b"),
                ("light", "light|low|minimal|sparse|little", ""),
                ("heavy", "heavy|high|busy", r"|congest\w+|traffic jam\b"),
            )
        }
        | {"": rf"no traffic\b|traffic(?: volume| flow| conditions?){IS} \w+"},
        "sidewalk": {"yes": r"(?:side ?walks?|footpaths?|pedestrian paths?)\b(?! availability)"},
        "division": {"": r"(?:divided|division|separated|separation)\b[^,.]{0,20}\bpedestrians?\b[^,.]{0,10}\bvehicles?\b|favou?rable road surface\b"},
        "roadside_strip": {"yes": r"(?:road ?side|side)[- ]strips?\b"},
        "roadside": {"": r"shoulders?\b|roadside\b(?! strip)"},
        "signal": {"yes": r"(?:with|without|no|a|any)(?: a| traffic)? signals?\b|traffic (?:lights?|signals?)\b|signal(?:iz|is)ed\b"},
        "crossing": {"": r"intersections?\b|junctions?\b|cross-?walks?\b|pedestrian crossings?\b|stop signs?\b"},
        "obstacle": {"yes": r"obstacles?\b|obstructions?\b"},
        "object": {
            "": r"guard ?rails?\b|parked (?:car|vehicle|truck)s?\b|(?:height|width|length) of \d+(?:\.\d+)? ?m\b|\d+(?:\.\d+)? ?m(?:eters?)? (?:high|wide|long|in (?:height|width|length))"
            r"|(?:utility |electric |telephone )?poles?\b|hedges?\b|fences?\b"
        },
    },
    "weather": {
        "weather": {
            "clear": r"clear\b(?! field| view| picture| visib| sight| line| and (?:concise|easily|understandable|precise)|,? (?:concise|easily)| understanding| manner| of\b| image| path)"
            r"|sunny\b|fine weather\b",
            "cloudy": r"cloud(?:y|s)\b|overcast\b",
            "rainy": r"(?:light )?rain(?:y|ing|s)?\b|drizzl\w+",
            "snowy": r"snow(?:y|ing|s)?\b",
            "foggy": r"fog(?:gy)?\b|mist(?:y)?\b|hazy\b",
            "": r"weather conditions? (?:is|are|was|were) (?:favou?rable|good|fine|normal|bad|poor|optimal|adverse)\b|windy\b|storm(?:y)?\b",
        },
        "light": {
            "dark": rf"(?:dark|poorly lit)\b{NO_COLOR_OF_CLOTHES}|brightness(?: level)?(?: of the \w+)?{IS}{{1,3}} low\b|low (?:brightness|light)\b",
            "dim": r"dim(?:ly)?\b(?: lit)?",
            "bright": rf"(?:bright(?:ly lit)?|well[- ]lit|sunlight)\b{NO_COLOR_OF_CLOTHES}|brightness(?: level)?(?: of the \w+)?{IS}{{1,3}} high\b",
            "": r"(?:lit|lighting)\b",
        },
        "time": {"": r"(?:day ?time|night(?: ?time)?|morning|evening|afternoon|dusk|dawn|twilight|noon|sunset|sunrise)\b"},
        "street_lights": {"yes": r"street ?(?:lights?|lamps?|lighting)\b"},
        "day": {"": r"week ?(?:days?|ends?)\b|(?:mon|tues|wednes|thurs|fri|satur|sun)day\b"},
    },
}

_DIRECTION = re.compile(r"\b(?:turn|lean|fac|orient|tilt|look|mov|walk|head|go|cross|travel|runn?)(?:e|s|es|ed|ing)?(?: \w+ly)? $")  # "turned to the left"
# A fact of these slots is dropped if it overlaps a fact of the others: "walking in the same direction" is no orientation.
_HIDDEN_BY = {
    "position": ("orientation", "travel_direction", "line_of_sight"),
    "orientation": ("travel_direction",),
    "travel_direction": ("line_of_sight",),
    "motion": ("avoid", "wait"),
    "weather": ("visible",),
}
_SYNONYMS = {
    **{"grey": "gray", "t shirt": "t-shirt", "tshirt": "t-shirt", "t-shirts": "t-shirt"},
    **{"single": "1", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"},
    **dict.fromkeys(("in front", "ahead", "forward"), "direction of travel"),
    **{"it": "vehicle", "towards it": "vehicle", "parked car": "parked vehicle", "ground": "road surface", "passing vehicle": ""},
}
_PATTERNS = []  # (aspect, slot or kind, its values, names of groups, pattern)
for _aspect, _slots in TABLE.items():
    for _slot, _values in _slots.items():
        _pattern = re.compile(rf"\b(?:{'|'.join(f'(?P<_{i}>{p})' for i, p in enumerate(_values.values()))})")
        _names = [name for name in _pattern.groupindex if name[0] != "_"]
        _PATTERNS.append((_aspect, _slot, list(_values), _names, _pattern))
SLOT_ASPECT = {slot: aspect for aspect, kind, _, names, _ in _PATTERNS for slot in (kind, *names)}

# Words that only name a topic ("As for the environment conditions, …") are blanked before facts are read.
_NO_FACT = re.compile(
    r"\b(?:as for|regarding|concerning|in terms of|with regards? to|taking|considering|despite|given)\b[^,.]{0,60}?"
    r"(?:conditions?|surroundings?|account|consideration|environment|factors|event|position|action|gender|age|height)\b(?: and \w+)?,?"
    r"|\bthe environment(?:al)? conditions?(?: (?:surrounding|of|for|in|at)\b[^,.]{0,50}?(?:event|vehicle|pedestrian|scen\w+|incident|accident|situation))?\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?:[\"'”’)]*)(?:\s+|(?=[A-Z]))")
_NOT_AN_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|approx|e\.g|i\.e|etc|vs|cf)|\b[A-Z])\.\s*$")


class Fact(NamedTuple):
    """The place of a fact in a sentence, and what it states: the value of a slot, or "" for words without a value."""

    start: int
    end: int
    aspect: str
    slot: str
    value: str


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


@lru_cache(maxsize=1 << 15)
def find_facts(sentence: str) -> tuple[Fact, ...]:
    """Return the facts of a sentence in reading order."""
    # "İ" is the only letter that lower() makes longer, which would shift all places behind it
    text = _NO_FACT.sub(lambda found: " " * len(found.group()), sentence.replace("İ", "I").lower())
    found: dict[str, list[Fact]] = {}
    for aspect, slot, values, names, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            value = values[int(match.lastgroup[1:])]
            if value == "yes" and slot in _DENIABLE:
                value = _denied(text, *match.span())
            words = {name: match[name] for name in names if match[name]}
            stated = {name: _SYNONYMS.get(word, word.replace("grey", "gray")) for name, word in words.items()}
            for name, word in (stated | ({slot: value} if value or not stated else {})).items():
                found.setdefault(name, []).append(Fact(*match.span(), aspect, name, word))
    found["position"] = [f for f in found.get("position", ()) if not _DIRECTION.search(text, max(0, f.start - 25), f.start)]
    for slot, others in _HIDDEN_BY.items():
        hiding = [fact for other in others for fact in found.get(other, ())]
        found[slot] = [
            fact for fact in found.get(slot, ()) if not any(fact.start < h.end and h.start < fact.end for h in hiding)
        ]
    if "obstacle" in found or "object" in found:  # "an obstacle on the right side": where the obstacle is, and its size
        found |= {"position": [], "distance": []}
    if "sidewalk" in found or "roadside_strip" in found:  # "a sidewalk only on the left side"
        found["position"] = [f for f in found["position"] if f.value not in ("left", "right") or text.startswith(" of", f.end)]
    if re.search(r"\bbod(?:y|ies)\b", text):  # "his body turned to the left"
        found["motion"] = [f for f in found["motion"] if not re.match(r"turn|stand", text[f.start : f.end])]
    if "visible" in found:  # "the driver can see and notice"
        found["notice"] = []
    return tuple(sorted((fact for facts in found.values() for fact in facts), key=lambda fact: (fact.start, -fact.end)))


_DENIABLE = ("hat", "glasses", "cane", "sidewalk", "roadside_strip", "signal", "obstacle", "street_lights")
_CLAUSE = re.compile(r";|, (?:and|which|with)\b|\b(?:but|however|although|though|while|whereas|due to|because|there (?:is|are|was|were))\b")
_NEGATION = re.compile(r"\b(?:no|not|\w+n't|without|neither|nor|lack(?:s|ed|ing)?|devoid|absence)\b")
_ABSENT = re.compile(r"[^,;]{0,30}?\b(?:absent|missing|lacking|unavailable|not)\b")
_PRESENT = re.compile(r"[^,;]{0,30}?\b(?:is|are|was|were)(?: \w+)? (?:present|available|on|installed|functioning|illuminat\w+|lit)\b|(?: \w+)? illuminat")
_ONE_SIDE = re.compile(r"\b(?:one|left|right|single) side\b|\bonly (?:on )?(?:the |one |its )")
_BOTH_SIDES = re.compile(r"\b(?:both|either|each) sides?\b")


def _denied(text: str, start: int, end: int) -> str:
    """Return "yes", "no", or on how many sides of the road something is: "no … on both sides" is no."""
    begins = 0
    for boundary in _CLAUSE.finditer(text, max(0, start - 120), start):
        begins = boundary.end()
    boundary = _CLAUSE.search(text, end, end + 60)
    before, after = text[max(begins, start - 120) : start], text[end : boundary.start() if boundary else end + 60]
    if before.endswith(("no ", "no visible ")) or _ABSENT.match(after) or (_NEGATION.search(before) and not (_PRESENT.match(after) and not re.search("neither|nor", before))):
        return "no"
    if "side" not in text[start:end]:
        return "yes"
    return "one" if _ONE_SIDE.search(before + after) else "both" if _BOTH_SIDES.search(before + after) else "yes"


# What a caption says about the other: its motion, and where the other is
_OTHERS = {
    "vehicle": r"(?:pedestrian|he|she|person|man|woman|victim|individual)",
    "pedestrian": r"(?:vehicle|car|driver)",
}
_IS_SUBJECT = {
    subject: re.compile(rf"(?<!of the )(?<!of a )(?<!to the )(?<!from the )(?<!behind the )(?<!near the )(?<!with the )\b{other}(?:,? (?:that|which|who|is|was|has|had|been|currently|also|then|now|about|to|\w+ly|\w+ing))*[ ,]*$")
    for subject, other in _OTHERS.items()
}
_IS_OBJECT = {
    subject: re.compile(rf"(?: side)?(?: of| to| from)? (?:the |a |an )?{_OTHERS[other]}\b")
    for subject, other in (("vehicle", "pedestrian"), ("pedestrian", "vehicle"))
}
_PEDESTRIAN_MOTION = {"straight": "walking", "starting": "walking", "stopped": "standing", "stopping": "standing"}
# in the order of how much they say
_MOTIONS = {
    "pedestrian": ("standing", "walking", "about to cross", "crossing", "running", "rushing out", "falling", "colliding"),
    "vehicle": ("stopped", "starting", "straight", "turning left", "turning right", "reversing", "stopping", "braking", "passing", "colliding"),
}
_OF_PEDESTRIAN = ("orientation", "travel_direction", "line_of_sight", "visual_status")
NUMBERS = ("height_cm", "speed_kmh", "lanes")


def stated_values(caption: str, subject: str) -> dict[str, list]:
    """Return all values of each slot that the caption of a subject states, in reading order."""
    stated: dict[str, list] = {}
    for sentence in split_sentences(caption):
        low = sentence.lower()
        for start, end, _, slot, value in find_facts(sentence):
            if not value:
                continue
            if slot in ("motion", "speed", "speed_kmh", "aware") and value != "colliding" and _IS_SUBJECT[subject].search(low, max(0, start - 60), start):
                continue
            if slot == "position" and _IS_OBJECT[subject].match(low, end):
                continue
            if slot == "motion":
                value = _PEDESTRIAN_MOTION.get(value, value) if subject == "pedestrian" else value
                value = "stopped" if value == "standing" and subject == "vehicle" else value
                if value not in _MOTIONS[subject]:
                    continue
            if slot == "speed_kmh" if subject == "pedestrian" else slot in _OF_PEDESTRIAN:
                continue
            stated.setdefault(slot, []).append(int(value) if slot in NUMBERS else value)
    return stated


def read_facts(caption: str, subject: str) -> dict[str, str | int]:
    """Return the facts that the caption of a subject ("vehicle" or "pedestrian") states: {slot: value}.

    The first value counts. Of a pedestrian's motions the most specific one counts, of a vehicle's the first action.
    """
    stated = stated_values(caption, subject)
    facts = {slot: values[0] for slot, values in stated.items()}
    if "motion" in facts:
        if subject == "pedestrian":
            facts["motion"] = max(stated["motion"], key=_MOTIONS[subject].index)
        else:
            facts["motion"] = next((value for value in stated["motion"] if value != "stopped"), "stopped")
    if "age" in facts:
        facts["age"] = next((value for value in stated["age"] if value != "elderly"), "elderly")
    return facts
