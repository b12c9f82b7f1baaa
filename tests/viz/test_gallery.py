"""The gallery: no caption is lost or executed, and the page works in a real browser."""

import json
import random
import re
import shutil
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from clips import write_gray
from PIL import Image, ImageDraw

from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.track2.metrics import score_name
from beit3lib.viz import gallery
from beit3lib.viz.gallery import caption_cards, compare_table, image_row, storyboard, write_gallery

HOSTILE = (
    '<b>A</b> car </script><script>window.hit = 1</script> <!-- & " \u2028 <img src=x onerror="window.hit=2">'
)
COLORS = "red blue green white black gray yellow brown".split()
# Tags and attributes that untrusted notebooks keep, in JupyterLab (its sanitizer) and on GitHub.
PLAIN = set("p b i u mark small br img table thead tbody tr th td h3 details summary".split())
KEPT = set("align valign width rowspan colspan style dir src alt".split())


def draw_image(path, seed: int) -> None:
    image = Image.new("RGB", (48, 48), tuple(random.Random(seed).randrange(256) for _ in range(3)))
    ImageDraw.Draw(image).rectangle((8, 8, 24, 24), fill="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_predictions(root, images: int, seed: int = 0, wrong: float = 0.3) -> pd.DataFrame:
    """Ten captions per image, five phases and two cameras per scenario; some captions differ in one word."""
    rng, rows = random.Random(seed), []
    for i in range(images):
        draw_image(root / f"images/avg{i}.jpg", i)
        view = ("overhead_view", "vehicle_view")[i // 5 % 2]
        about = [f"images/avg{i}.jpg", f"s{i // 10}", "val", "wts", view, f"s{i // 10}_{view}.mp4"]
        about += [i % 5, str(i % 5)]
        for subject, aspect in [(subject, aspect) for subject in SUBJECTS for aspect in ASPECTS]:
            color = COLORS[i // 10 % len(COLORS)]
            reference = f"The {subject} {aspect} is {rng.randrange(60)} meters from a {color} shirt."
            caption = reference.replace(color, rng.choice(COLORS)) if rng.random() < wrong else reference
            probs = [round(rng.uniform(0.6, 1), 3) for _ in caption.split()]
            score = 100.0 if caption == reference else round(rng.uniform(20, 90), 2)
            rows.append([*about, subject, aspect, caption, reference, probs, -rng.random(), score])
    columns = "image scenario split source view video phase label subject aspect caption reference word_probs"
    return pd.DataFrame(rows, columns=[*columns.split(), "log_prob", "official_score"])


class Page(HTMLParser):
    """The tags with attributes, the scripts and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem is None:
            self.text += data


def read_data(path) -> dict:
    return json.loads(Page(path.read_text("utf-8")).scripts[0])


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_html_in_captions_and_names_is_text_and_nothing_is_loaded(tmp_path):
    predictions = make_predictions(tmp_path, 2).astype({"caption": object, "aspect": object})
    predictions.loc[0, ["caption", "reference", "scenario", "view", "label", "aspect"]] = HOSTILE
    path = write_gallery(predictions, tmp_path / "g.html", tmp_path, HOSTILE, {HOSTILE: predictions})
    html = path.read_text("utf-8")
    page = Page(html)
    assert len(page.scripts) == 2 and "window.hit" not in page.scripts[1]
    assert HOSTILE in json.loads(page.scripts[0])["texts"] and HOSTILE in page.text
    assert "default-src 'none'" in html and not re.search(r"https?:|@import|url\(", html)
    for html in (caption_cards(predictions, tmp_path), storyboard(predictions, HOSTILE, tmp_path)):
        assert not Page(html.data).scripts and one_line(HOSTILE) in one_line(Page(html.data).text)


def test_images_below_image_root_are_linked_or_part_of_the_page(tmp_path, monkeypatch):
    draw_image(tmp_path / "secret.png", 1)
    run = tmp_path / "run"
    predictions = make_predictions(run, 4).replace({"image": {"images/avg0.jpg": "images/a b#1.jpg"}})
    (run / "images/avg0.jpg").rename(run / "images/a b#1.jpg")
    (run / "images/avg1.jpg").unlink()
    (run / "images/avg2.jpg").write_bytes(b"\xff\xd8\xff broken")
    for most in (4, 3):
        monkeypatch.setattr(gallery, "EMBED_IMAGES", most)
        path = write_gallery(predictions, run / "pages" / "g.html", run)
        entries = read_data(path)["images"]
        assert entries[0]["src"] == "../images/a%20b%231.jpg" and ("embedded" in entries[0]) == (most == 4)
        assert "image not found: 1 not shown." in path.read_text()
        assert ("image cannot be read: 1 not shown." in path.read_text()) == (most == 4)
    one = predictions[30:]
    for name in ("../secret.png", "images/../../secret.png", str(tmp_path / "secret.png")):
        outside = one.assign(image=name)
        (entry,) = read_data(write_gallery(outside, run / "g.html", run))["images"]
        assert entry["problem"] == "image path outside image_root" and "src" not in entry
        assert "data:image" not in caption_cards(outside, run).data
    absolute = one.assign(image=str(run / "images/avg3.jpg"))
    assert read_data(write_gallery(absolute, run / "g.html", run))["images"][0]["src"] == "images/avg3.jpg"


def test_the_command_and_a_table_compare_runs(tmp_path, capsys):
    run = tmp_path / "demo"
    one = make_predictions(run, 3)
    table = compare_table(one, {"epoch 1": one.assign(official_score=one["official_score"] - 5)[5:]}, "big")
    means = one["official_score"][5:].mean() - [0, 5]  # of the captions that every run has
    assert table.loc[("all", "all")].tolist() == pytest.approx([25, *means])
    assert compare_table(one, {"other data": one.assign(image="other.jpg")}).empty
    for name, part in (("predictions", one), ("first", one[::2])):
        records = json.loads(part.to_json(orient="records"))
        (run / f"{name}.json").write_text(json.dumps({"meta": {"comparable": False}, "predictions": records}))
    command = [str(run / "predictions.json"), "--compare_with", f"epoch 1={run / 'first.json'}"]
    gallery.main(command)
    data = read_data(run / "gallery.html")
    captions = {run["name"]: 30 - run["caption"].count(-1) for run in data["runs"]}
    assert captions == {"demo": 30, "epoch 1": 15}
    assert data["measures"]["official_score"]["title"] == score_name(False)  # without WordNet: not official
    with pytest.raises(SystemExit):
        gallery.main([*command[:2], str(run / "first.json")])
    assert "expected a name other than demo" in capsys.readouterr().err


def test_tables_for_notebooks_need_no_style(tmp_path):
    predictions = make_predictions(tmp_path, 20, wrong=0.5)
    html = caption_cards(predictions, tmp_path, max_cards=2)
    page, exact = Page(html.data), predictions["caption"] == predictions["reference"]
    assert len(repr(html)) < 100  # a notebook saves it beside the HTML
    assert all(text in one_line(page.text) for text in predictions["caption"][:20])
    assert f"{exact[:10].sum()} of 10 equal in fact" in page.text
    assert [tag for tag, _ in page.tags].count("img") == 2
    row = image_row([tmp_path / "images/avg0.jpg"], ["a <b> $x$"], "Title")
    assert "a <b> $x$" in Page(row.data).text
    board = Page(storyboard(predictions[::-1], "s1", tmp_path).data)
    assert re.findall(r"phase (\d) · ", board.text.split("overhead view")[0]) == list("01234")
    columns = [tag for tag, _ in board.tags if tag in ("img", "th")]  # a column per phase, a row per camera
    assert columns == ["th"] * 6 + ["img"] * 5 + ["th"] + ["img"] * 5
    assert "Contradiction in vehicle · moving: upper color" in board.text
    for tag, attributes in page.tags + Page(row.data).tags + board.tags:
        assert tag in PLAIN and set(attributes) <= KEPT


FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-background-networking --disable-component-update
--disable-sync --hide-scrollbars --window-size=1280,1000"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium, or a skip with the reason."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no Chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of 60 images in 6 scenarios with a second run, and both tables."""
    root = tmp_path_factory.mktemp("page")
    one, other = make_predictions(root, 60), make_predictions(root, 60, seed=7, wrong=0.6)
    one = one.astype({"caption": object, "reference": object})
    one.loc[0, "caption"], one.at[0, "word_probs"], one.loc[0, "official_score"] = HOSTILE, None, 0.0
    one.loc[1, "caption"], one.at[1, "word_probs"], one.loc[1, "official_score"] = "", None, 1.0
    one["attention"] = [{"red": [[0.1, 0.9], [0.4, 0.2]]}] * len(one)
    title = "Captions of run 'demo'"
    return write_gallery(one, root / "g.html", root, title, {"epoch 1": other}, name="demo"), one, other


class Tab:
    """A tab of the browser, with short names for what the tests do."""

    def __init__(self, driver) -> None:
        self.driver, self.js = driver, driver.execute_script

    def open(self, path, fragment="") -> None:
        self.driver.get("about:blank")
        self.driver.get(path.as_uri() + fragment)

    def find(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [one_line(element.text) for element in self.find(selector)]

    def click(self, selector: str, number: int = 0) -> None:
        self.find(selector)[number].click()

    def count(self) -> tuple[int, ...]:
        """Images and captions that match, as the page counts them."""
        return tuple(int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", self.texts("#count")[0])[:2])

    def tick(self, facet: str, value: str, kind: str = "tick") -> None:
        self.js(f"facets.find(f => f.name === '{facet}').nodes.find(n => n.key === '{value}').{kind}.click()")

    def choose(self, field: str, value: str) -> None:
        self.js(
            f"const f = $('{field}'); f.value = '{value}'; "
            "for (const e of ['input', 'change']) f.dispatchEvent(new Event(e))"
        )
        time.sleep(0.2)  # a search waits for the end of typing


@pytest.fixture
def tab(browser):
    """A tab; at the end nothing must have been reported on the console."""
    yield Tab(browser)
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_overview_facets_search_and_links(tab, page):
    path, one, other = page
    tab.open(path, "#order=up")
    names = ["image", "subject", "aspect", "caption", "official_score"]
    found = [[row[name] for name in names] for row in tab.js("return exported()")]
    assert sorted(found) == sorted(one[names].to_numpy().tolist())  # each caption once
    means = one.groupby("image", sort=False)["official_score"].mean().sort_values(kind="stable")
    assert tab.texts(".tile strong") == [f"{mean:.1f}" for mean in means]
    tab.choose("query", "GREEN vehicle_view.mp4")
    green = (one["caption"] + one["reference"] + other["caption"]).str.contains("green")
    assert tab.count()[1] == (green & (one["view"] == "vehicle_view")).sum() > 0
    tab.click("#clear")
    tab.tick("aspect", "road")
    tab.tick("aspect", "weather")
    tab.tick("phase", "3", "not")
    assert tab.count() == (48, 192)
    tab.tick("view", "vehicle_view")
    assert {(r["aspect"], r["view"]) for r in tab.js("return exported()")} == {
        ("road", "vehicle_view"),
        ("weather", "vehicle_view"),
    }
    counts = "return facets.find(f => f.name === 'aspect').nodes.map(n => +n.number.textContent)"
    assert tab.js(counts) == [48] * 5  # of the images that match the other facets
    tab.click(".tile")
    about = tab.texts("#large-about")
    tab.open(path, "#" + tab.driver.current_url.split("#", 1)[1])  # a link shows the same filters and image
    assert tab.texts("#large-about") == about and tab.count() == (24, 96)
    assert tab.texts("#large-captions summary") == ["6 captions of this image outside the filters"]


def test_the_large_view_shows_attention_and_confidence(tab, page):
    path, one, _ = page
    tab.open(path, "#order=listed&other=")
    tab.click(".tile", 1)
    assert "phase 1 · recognition" in tab.texts("#large-about")[0]
    assert len(tab.find("#large .caption")) == 10
    percents = [int(text) for text in tab.texts("#large .caption:nth-child(2) .gen .w small")]
    assert percents == [round(100 * p) for p in one["word_probs"][10]]
    tab.driver.find_element("xpath", "//button[text()='attention: red']").click()
    opacities = [float(cell.value_of_css_property("opacity")) for cell in tab.find(".attention i")]
    assert opacities == pytest.approx([0.083, 0.75, 0.333, 0.167], abs=0.001)
    tab.find("body")[0].send_keys("\ue014")  # the right arrow key
    assert "phase 2" in tab.texts("#large-about")[0]
    tab.open(path, "#view=captions&order=listed&image=images/avg0.jpg")
    texts = tab.texts("#large .gen .text")
    assert texts[0].startswith(one_line(HOSTILE)) and texts[1].startswith("(empty caption)")
    assert tab.js("return window.hit") is None


def test_marks_and_notes_are_kept_saved_and_loaded(tab, page, tmp_path):
    tab.open(page[0], "#image=images/avg3.jpg")
    tab.click("#large .tools button")
    for tool in tab.find("#large .tools input")[:2]:
        tool.send_keys("wrong color")
    for facet, marks in (("mark=marked", [True]), ("note=with a note", [True, False])):
        tab.open(page[0], f"#only.{facet}")
        rows = tab.js("return exported()")
        assert [(r["marked"], r["note"]) for r in rows] == [(mark, "wrong color") for mark in marks]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    tab.js("localStorage.clear()")
    tab.open(page[0])
    tab.find("#import")[0].send_keys(str(tmp_path / "captions.json"))
    time.sleep(0.3)
    tab.driver.switch_to.alert.accept()
    tab.tick("note", "with a note")
    assert tab.js("localStorage.clear(); return exported()") == rows


def test_two_runs_are_compared_by_score(tab, page):
    path, one, other = page
    tab.open(path)
    change, same = one["official_score"] - other["official_score"], one["caption"] == other["caption"]
    better, worse = (~same & (change >= 0.5)).sum(), (~same & (change <= -0.5)).sum()
    means = [f"{run['official_score'].mean():.1f}" for run in (one, other)]
    expected = ["600", str(better), str(600 - better - worse), str(worse), *means]
    assert tab.texts(".compare tbody tr:last-child td")[:6] == expected
    tab.tick("outcome", "worse")
    assert tab.count()[1] == worse
    tab.choose("other", "-1")
    assert tab.find(".compare") == [] and tab.count()[1] == 600


def test_captions_with_wrong_facts_come_first(tab, tmp_path):
    table = make_predictions(tmp_path, 5).drop_duplicates("image").reset_index(drop=True)
    table[["caption", "reference", "official_score"]] = [
        ("A dry road in clear weather.", "The weather is clear, the road dry.", 10),
        ("The road is dry.", "The road is dry.", 100),
        ("The road is dry. A man wears a hat.", "It is a dry road with sidewalks on both sides.", 20),
        ("The weather is rainy.", "The weather is clear today.", 90),
        ("A dog.", "A cat.", 5),  # without facts that could be compared
    ]
    path = write_gallery(table, tmp_path / "g.html", tmp_path)
    tab.open(path, "#view=captions")
    assert tab.texts(".tag") == ["weather: rainy ≠ clear", *tab.texts(".tag")[1:]]
    assert {"omitted: sidewalk both", "added: hat yes"} <= set(tab.texts(".tag"))
    assert tab.texts("#captions .fact:not(.left-out)") == ["rainy.", "clear"]
    assert tab.texts("#captions .left-out") == ["sidewalks"]
    assert tab.texts("#captions summary") == ["1 of 1 equal in fact", "1 of 1 equal in fact"]
    tab.tick("kind", "incomplete")
    assert tab.count() == (1, 1)
    tab.open(path)
    assert tab.texts(".numbers tbody tr")[:2] == ["weather 1 0 0 1 50 %", "sidewalk 0 1 0 0 100 %"]
    tab.click(".numbers tbody button", 1)
    assert tab.texts("#count") == ["1 image, 1 of 5 captions · sidewalk wrong or omitted"]
    cards = Page(caption_cards(table, tmp_path).data)
    assert "weather: rainy ≠ clear" in cards.text and "sidewalk: both omitted" in cards.text


def test_frame_boxes_and_video_are_shown(tab, tmp_path):
    run, media = tmp_path / "run", tmp_path / "wts a"
    media.mkdir()
    write_gray(media / "v.mp4", range(0, 200, 4))
    Image.new("RGB", (200, 100)).save(tmp_path / "frame.jpg")
    table = make_predictions(run, 2).assign(frame_width_px=200, frame_height_px=100, box_vehicle_xywh_px="")
    table = table.assign(start_s=[2.5] * 10 + [4.0] * 10, end_s=[4.0] * 10 + [4.5] * 10)
    table = table.assign(box_pedestrian_xywh_px="40 20 60 50", frame="images/avg0.jpg")
    table.loc[10, "caption"] = "<i>&"
    for video, root in (("v.mp4", None), ("../v.mp4", media), ("none.mp4", media)):
        outside = table.assign(frame="../frame.jpg", video_path=video)
        entry = read_data(write_gallery(outside, run / "g.html", run, media_root=root))["images"][0]
        assert entry["frame"] is None and entry["clip"] is None
    for video in ("v.mp4", str(media / "v.mp4")):
        path = write_gallery(table.assign(video_path=video), run / "g.html", run, media_root=media)
        entry = read_data(path)["images"][0]
        assert entry["frame"] == "images/avg0.jpg" and entry["clip"] == "../wts%20a/v.mp4#t=2.500,4.000"
    tab.open(path, "#image=images/avg0.jpg")
    assert tab.texts(".box") == ["pedestrian"]
    assert "left: 20%; top: 20%; width: 30%; height: 50%" in tab.find(".box")[0].get_attribute("style")
    time.sleep(1)
    assert tab.js("return document.querySelector('video').currentTime") == 2.5
    now = tab.texts(".now")[0]  # the captions of the phase that the video shows
    assert now.startswith("phase 0 · prerecognition pedestrian The ") and table["caption"][0] in now
    tab.js("document.querySelector('video').currentTime = 4.2")
    time.sleep(1)
    assert "vehicle <i>& The" in tab.texts(".now")[0] and tab.find(".now i") == []


def test_questions_show_probabilities_and_the_right_answer(tab, tmp_path):
    table = make_predictions(tmp_path, 3)
    table["contradiction"] = [None] * 29 + ["weather rainy, answer <i>"]
    rows = [("images/avg0.jpg", "Weather?", "B", "b", False), ("images/avg0.jpg", "Road?", "a", "b", True)]
    rows += [(f"images/avg{i}.jpg", "Road?", correct, "a", False) for i, correct in enumerate("a_a", 1)]
    answers = pd.DataFrame(rows, columns=["image", "question", "correct", "answer", "changed"])
    answers = answers.replace("_", None).assign(scope="phase")
    answers["options"] = [{"a": "Clear", "b": "Rainy", "c": HOSTILE}] * 5
    log_probs = {"a": -1000.0, "b": -1000.0 + np.log(3), "c": -np.inf}  # 25, 75 and 0 percent
    path = write_gallery(
        table, tmp_path / "g.html", tmp_path, answers=answers.assign(log_probs=[log_probs] * 5)
    )
    assert "questions about an image without captions: 1 not shown." in path.read_text()
    tab.open(path)
    assert "2 of 3 answers right, 1 changed by consistency" in tab.texts("#summary")[0]
    assert tab.texts("table.questions tbody tr") == ["Road? 3 50 % 1", "Weather? 1 100 % 0"]
    tab.tick("against", "contradicts an answer")
    assert tab.count() == (1, 1)
    tab.open(path, "#view=captions&order=listed")
    assert tab.texts(".tag.worse") == ["⚠ weather rainy, answer <i>"]
    lines = tab.texts(".question:nth-of-type(2) > p, .question:nth-of-type(2) tr")
    assert lines[:3] == ["Road? phase wrong changed by consistency", "✓ Clear 25 %", "✗ Rainy 75 %"]
    assert lines[3] == one_line(HOSTILE + " 0 %")
    assert "1 question answered right" in tab.texts("#captions summary")
    for answered, images in (("right", 2), ("wrong", 1), ("changed", 1), ("", 3)):
        tab.choose("answered", answered)
        assert tab.count() == (images, 10 * images)
    tab.open(path, "#question=Weather?&image=images/avg0.jpg")
    assert tab.count() == (1, 10) and len(tab.find("#large .question")) == 1


def test_odd_pages_work(tab, tmp_path):
    table = make_predictions(tmp_path, 2).assign(phase=0, label="0", view="vehicle_view", video="v.mp4")
    without = {"plain": table[list(gallery.REQUIRED)], "no reference": table.drop(columns="reference")}
    for kind, part in {"empty": table[:0], "one place": table, **without}.items():
        path = write_gallery(part, tmp_path / "g.html", tmp_path)
        for view in ("overview", "scenarios", "captions"):
            tab.open(path, f"#view={view}")
            assert tab.count()[1] == len(part) and tab.find("#empty")[0].is_displayed() == (kind == "empty")
            assert kind != "one place" or view != "scenarios" or len(tab.find("#boards img")) == 2
        assert kind != "no reference" or "eference" not in tab.texts("#main")[0]
