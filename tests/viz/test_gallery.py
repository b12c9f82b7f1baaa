"""The gallery: no caption is lost or executed, and the page works in a real browser."""

import json
import os
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

HOSTILE = 'A <b>bold</b> car </script><script>window.hit = 1</script> <!-- & " \u2028 <img src=x onerror="window.hit=2">'
COLORS = "red blue green white black gray yellow brown".split()
# Tags and attributes that untrusted notebooks keep, in JupyterLab (its sanitizer) and on GitHub.
PLAIN = set("p b i u mark small br img table thead tbody tr th td h3 details summary".split())
KEPT = set("align valign width rowspan colspan style dir src alt".split())


def draw_image(path, seed: int) -> None:
    image = Image.new("RGB", (48, 48), tuple(random.Random(seed).randrange(256) for _ in range(3)))
    ImageDraw.Draw(image).rectangle((8, 8, 24, 24), fill="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_predictions(root, images: int, seed: int = 0, wrong: float = 0.3, draw: bool = True) -> pd.DataFrame:
    """Ten captions per image, five phases and two cameras per scenario; some captions differ in one word."""
    rng, rows = random.Random(seed), []
    for i in range(images):
        if draw:
            draw_image(root / f"images/avg{i}.jpg", i)
        view = ("overhead_view", "vehicle_view")[i // 5 % 2]
        about = [
            f"images/avg{i}.jpg",
            f"s{i // 10}",
            "val",
            "wts",
            view,
            f"s{i // 10}_{view}.mp4",
            i % 5,
            str(i % 5),
        ]
        for subject, aspect in [(subject, aspect) for subject in SUBJECTS for aspect in ASPECTS]:
            color = COLORS[i // 10 % len(COLORS)]
            reference = f"The {subject} {aspect} is {rng.randrange(60)} meters from a {color} shirt."
            caption = reference.replace(color, rng.choice(COLORS)) if rng.random() < wrong else reference
            probs = [round(rng.uniform(0.6, 1), 3) for _ in caption.split()]
            score = 100.0 if caption == reference else round(rng.uniform(20, 90), 2)
            rows.append([*about, subject, aspect, caption, reference, probs, -rng.random(), score])
    columns = "image scenario split source view video phase label subject aspect caption reference word_probs log_prob"
    return pd.DataFrame(rows, columns=[*columns.split(), "official_score"])


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


def test_every_caption_is_in_the_page_once(tmp_path):
    one, other = make_predictions(tmp_path, 7), make_predictions(tmp_path, 7, seed=1)[3:]
    shuffled = one.sample(frac=1, random_state=0)
    data = read_data(write_gallery(shuffled, tmp_path / "g.html", tmp_path, others={"epoch 2": other}))
    for table, run in zip((one, other), data["runs"], strict=True):
        scores, found = run["measures"]["official_score"], []
        for image, kind, *own in zip(
            data["rows"]["image"], data["rows"]["type"], run["caption"], scores, strict=True
        ):
            if own[0] >= 0:
                found.append(
                    [data["images"][image]["image"], *data["types"][kind], data["texts"][own[0]], own[1]]
                )
        columns = ["image", "subject", "aspect", "caption", "official_score"]
        assert sorted(found) == sorted(table[columns].to_numpy().tolist())


def test_html_in_captions_and_names_is_text_and_nothing_is_loaded(tmp_path):
    predictions = make_predictions(tmp_path, 2).astype({"caption": object, "aspect": object})
    predictions.loc[0, ["caption", "reference", "scenario", "view", "label", "aspect"]] = HOSTILE
    html = write_gallery(
        predictions, tmp_path / "g.html", tmp_path, HOSTILE, {HOSTILE: predictions}
    ).read_text("utf-8")
    page = Page(html)
    assert len(page.scripts) == 2 and "window.hit" not in page.scripts[1]
    assert HOSTILE in json.loads(page.scripts[0])["texts"] and HOSTILE in page.text
    assert "default-src 'none'" in html and not re.search(r"https?:|@import|url\(", html)
    for html in (caption_cards(predictions, tmp_path), storyboard(predictions, HOSTILE, tmp_path)):
        assert not Page(html.data).scripts and one_line(HOSTILE) in one_line(Page(html.data).text)


def test_images_are_part_of_a_small_page_and_only_linked_from_a_large_one(tmp_path, monkeypatch):
    predictions = make_predictions(tmp_path, 2).replace({"image": {"images/avg0.jpg": "images/a b#1.jpg"}})
    draw_image(tmp_path / "images/a b#1.jpg", 0)
    for most, embedded in ((2, True), (1, False)):
        monkeypatch.setattr(gallery, "EMBED_IMAGES", most)
        entries = read_data(write_gallery(predictions, tmp_path / "pages" / "g.html", tmp_path))["images"]
        assert entries[0]["src"] == "../images/a%20b%231.jpg"
        assert all(("embedded" in entry) == embedded for entry in entries)


@pytest.mark.parametrize(
    "name", ["../secret.png", "images/../../secret.png", "{root}/secret.png", "link/secret.png"]
)
def test_an_image_outside_image_root_is_refused(tmp_path, name):
    draw_image(tmp_path / "secret.png", 1)
    run = tmp_path / "run"
    predictions = make_predictions(run, 1)
    (run / "link").symlink_to(tmp_path)
    outside = predictions.assign(image=name.format(root=tmp_path))
    (entry,) = read_data(write_gallery(outside, run / "g.html", run))["images"]
    assert entry["problem"] == "image path outside image_root" and "src" not in entry
    assert "data:image" not in caption_cards(outside, run).data
    absolute = predictions.assign(image=str(run / "images/avg0.jpg"))
    assert read_data(write_gallery(absolute, run / "g.html", run))["images"][0]["src"] == "images/avg0.jpg"


def test_images_that_cannot_be_shown_are_counted(tmp_path):
    predictions = make_predictions(tmp_path, 4)
    (tmp_path / "images/avg0.jpg").unlink()
    (tmp_path / "images/avg1.jpg").write_bytes(b"\xff\xd8\xff broken")
    path = write_gallery(predictions, tmp_path / "g.html", tmp_path)
    assert "image not found: 1 not shown." in path.read_text()
    assert "image cannot be read: 1 not shown." in path.read_text()
    assert len(read_data(path)["rows"]["image"]) == 40


def test_missing_and_empty_texts_differ(tmp_path):
    predictions = make_predictions(tmp_path, 1).astype(
        {"caption": object, "reference": object, "phase": float}
    )
    predictions.loc[0, ["caption", "reference"]] = ["", np.nan]
    predictions.loc[1, "reference"] = ""
    predictions.at[2, "word_probs"] = [0.5]  # not one per word
    data = read_data(write_gallery(predictions, tmp_path / "g.html", tmp_path))
    assert data["texts"][data["runs"][0]["caption"][0]] == ""
    assert data["rows"]["reference"][0] == -1 and data["texts"][data["rows"]["reference"][1]] == ""
    assert data["images"][0]["about"] == "phase 0 · prerecognition"
    text = Page(caption_cards(predictions, tmp_path).data).text
    assert all(name in text for name in ("(no reference)", "(empty reference)", "(empty caption)"))


def test_comparison_takes_the_captions_that_every_run_has(tmp_path):
    one = make_predictions(tmp_path, 3, draw=False)
    other = one.assign(official_score=one["official_score"] - 5)[5:]
    table = compare_table(one, {"epoch 1": other}, "big")
    assert table.loc[("all", "all"), "captions"] == 25 == table["captions"].sum() - 25
    assert (table["big"] - table["epoch 1"]).to_numpy() == pytest.approx(5)
    assert table.loc[("all", "all"), "big"] == pytest.approx(one["official_score"][5:].mean())
    assert compare_table(one, {"other data": one.assign(image="other.jpg")}).empty


def test_the_command_writes_a_page_that_compares_runs(tmp_path, capsys):
    run = tmp_path / "demo"
    predictions = make_predictions(run, 2)
    for name, table in (("predictions", predictions), ("first", predictions[::2])):
        records = json.loads(table.to_json(orient="records"))
        (run / f"{name}.json").write_text(json.dumps({"meta": {"comparable": False}, "predictions": records}))
    command = [str(run / "predictions.json"), "--compare_with", f"epoch 1={run / 'first.json'}"]
    gallery.main(command)
    data = read_data(run / "gallery.html")
    assert {one["name"]: len(set(one["caption"]) - {-1}) for one in data["runs"]} == {
        "demo": 20,
        "epoch 1": 10,
    }
    assert data["measures"]["official_score"]["title"] == score_name(
        False
    )  # without WordNet it is not official
    with pytest.raises(SystemExit):
        gallery.main([*command[:2], str(run / "first.json")])
    assert "expected a name other than demo" in capsys.readouterr().err


def test_cards_have_all_captions_and_need_no_style(tmp_path):
    predictions = make_predictions(tmp_path, 3, wrong=0.5)
    html = caption_cards(predictions, tmp_path, max_cards=2)
    page, exact = Page(html.data), predictions["caption"] == predictions["reference"]
    assert len(repr(html)) < 100  # a notebook saves it beside the HTML
    assert all(text in one_line(page.text) for text in predictions["caption"][:20])
    assert f"{exact[:10].sum()} of 10 equal to the reference" in page.text
    tags = [tag for tag, _ in page.tags]
    assert tags.count("img") == 2 and tags.count("mark") - 1 == (~exact)[:20].sum()  # one is in the key
    row = Page(
        image_row([tmp_path / "images/avg0.jpg", Image.new("L", (9, 9))], ["a <b> $x$", "gray"], "Title").data
    )
    assert "a <b> $x$" in row.text
    for tag, attributes in page.tags + row.tags + Page(storyboard(predictions, "s0", tmp_path).data).tags:
        assert tag in PLAIN and set(attributes) <= KEPT


def test_storyboard_has_phases_as_columns_and_cameras_as_rows(tmp_path):
    predictions = make_predictions(tmp_path, 20, wrong=1)
    page = Page(storyboard(predictions[::-1], "s1", tmp_path).data)
    assert re.findall(r"phase (\d) · ", page.text.split("overhead view")[0]) == list("01234")
    assert [tag for tag, _ in page.tags if tag in ("img", "th")] == ["th"] * 6 + ["img"] * 5 + ["th"] + [
        "img"
    ] * 5
    assert "Contradiction in vehicle · moving: color of the upper clothing" in page.text
    with pytest.raises(ValueError, match="expected one of s0, s1, got 's9'"):
        storyboard(predictions, "s9", tmp_path)


FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars --window-size=1280,1000"""


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


@pytest.fixture
def show(browser):
    """Open a page, and check at the end that nothing was reported on the console."""

    def open_page(path, fragment="", width=1280, dark=False):
        device = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get("about:blank")
        browser.get(path.as_uri() + fragment)

    yield open_page
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def texts(browser, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", selector)]


def counted(browser) -> tuple[int, int]:
    """Images and captions that match, as the page counts them."""
    images, captions = browser.find_element("id", "count").text.split(", ", 1)
    return int(images.split()[0].replace(",", "")), int(captions.split()[0].replace(",", ""))


def tick(browser, facet: str, value: str, kind: str = "tick") -> None:
    script = "facets.find(f => f.name === arguments[0]).nodes.find(n => n.key === arguments[1])[arguments[2]].click()"
    browser.execute_script(script, facet, value, kind)


def choose(browser, field: str, value: str) -> None:
    script = """const f = document.getElementById(arguments[0]); f.value = arguments[1];
    f.dispatchEvent(new Event("input", {bubbles: true})); f.dispatchEvent(new Event("change", {bubbles: true}));"""
    browser.execute_script(script, field, value)
    time.sleep(0.2)  # a search waits for the end of typing


def test_the_page_opens_with_an_overview_of_the_lowest_scores(browser, show, page):
    path, one, _ = page
    show(path)
    means = one.groupby("image", sort=False)["official_score"].mean().sort_values(kind="stable")
    assert texts(browser, ".tile strong") == [f"{mean:.1f}" for mean in means]
    exact = one["caption"] == one["reference"]
    assert f"without {exact.sum()} that are equal to the reference" in texts(browser, "#histogram-title")[0]
    assert browser.execute_script("return [...select().bins].reduce((a, b) => a + b)") == (~exact).sum()
    first = exact[one["image"] == means.index[0]].sum()
    assert f"{first} of 10 equal to the reference" in texts(browser, ".tile")[0]
    own = one[(one["subject"] == "vehicle") & (one["aspect"] == "moving")]["official_score"].mean()
    assert texts(browser, "#means tr")[0].startswith(f"vehicle · moving {own:.1f}")


def test_facets_search_and_histogram_filter_captions(browser, show, page):
    path, one, other = page
    show(path)
    for facet, value, kind in (
        ("aspect", "road", "tick"),
        ("aspect", "weather", "tick"),
        ("phase", "3", "not"),
    ):
        tick(browser, facet, value, kind)
    assert counted(browser) == (48, 192)
    tick(browser, "view", "vehicle_view")
    rows = browser.execute_script("return exported()")
    assert {(r["aspect"], r["view"]) for r in rows} == {("road", "vehicle_view"), ("weather", "vehicle_view")}
    counts = "return facets.find(f => f.name === 'aspect').nodes.map(n => +n.number.textContent)"
    assert browser.execute_script(counts) == [48] * 5  # of the images that match the other facets
    browser.find_element("id", "clear").click()
    choose(browser, "query", "GREEN vehicle_view.mp4")
    green = (one["caption"] + one["reference"] + other["caption"]).str.contains("green")
    assert counted(browser)[1] == (green & (one["view"] == "vehicle_view")).sum() > 0
    choose(browser, "query", "no such word")
    assert browser.find_element("id", "empty").is_displayed()
    browser.find_element("id", "clear").click()
    browser.find_elements("css selector", "#bars button")[5].click()
    assert counted(browser)[1] == one["official_score"].between(20, 24).sum() > 0


def test_the_large_view_shows_attention_and_confidence(browser, show, page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    path, one, _ = page
    show(path, "#order=listed&other=")
    browser.find_elements("css selector", ".tile")[1].click()
    assert "phase 1 · recognition" in texts(browser, "#large-about")[0]
    assert len(browser.find_elements("css selector", "#large .caption")) == 10
    percents = [int(text) for text in texts(browser, "#large .caption:nth-child(2) .gen small")]
    assert percents == [round(100 * p) for p in one["word_probs"][10]]
    browser.find_element("xpath", "//button[text()='attention: red']").click()
    cells = browser.find_elements("css selector", ".attention i")
    opacities = [float(cell.value_of_css_property("opacity")) for cell in cells]
    assert opacities == pytest.approx([0.083, 0.75, 0.333, 0.167], abs=0.001)
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert "phase 2" in texts(browser, "#large-about")[0]


def test_hostile_and_empty_captions_show_as_text(browser, show, page):
    show(page[0], "#view=captions&order=listed")
    assert [one_line(text) for text in texts(browser, "#captions .gen .text")[:2]] == [
        one_line(HOSTILE),
        "(empty caption)",
    ]
    browser.find_element("css selector", "#captions .thumb").click()
    assert one_line(texts(browser, "#large .gen .text")[0]) == one_line(HOSTILE)
    assert browser.execute_script("return window.hit") is None


@pytest.mark.parametrize("width, dark", [(1280, True), (400, False), (400, True)])
def test_nothing_is_wider_than_the_window(browser, show, page, tmp_path, width, dark):
    for fragment in ("", "#view=captions", "#view=scenarios", "#image=images/avg3.jpg", "#other="):
        show(page[0], fragment, width, dark)
        sizes = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert sizes == [width, width], fragment
        wide = """return [...document.querySelectorAll("body *")].filter(e => e.getClientRects().length
          && !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
        assert browser.execute_script(wide) == [], fragment
        if width == 1280:  # five phases fit without a scroll bar
            bars = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
            assert browser.execute_script(bars) == 0
    browser.save_screenshot(str(tmp_path / "shot.png"))
    with Image.open(tmp_path / "shot.png") as shot:
        background = max(shot.convert("RGB").resize((200, 160)).getcolors(40_000))[1]
    assert (sum(background) < 150) == dark


def test_marks_and_notes_are_kept_saved_and_loaded(browser, show, page, tmp_path):
    show(page[0], "#image=images/avg3.jpg")
    tools = browser.find_elements("css selector", "#large .caption .tools")
    tools[0].find_element("css selector", "button").click()
    for tool in tools[:2]:
        tool.find_element("css selector", "input").send_keys("wrong color")
    browser.find_element("id", "close").click()
    expected = [("images/avg3.jpg", True, "wrong color"), ("images/avg3.jpg", False, "wrong color")]
    for facet, number in (
        ("only.mark=marked", 1),
        ("only.note=with a note", 2),
    ):  # both facets count a caption
        show(page[0], f"#{facet}")
        rows = browser.execute_script("return exported()")
        assert [(r["image"], r["marked"], r["note"]) for r in rows] == expected[:number]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    browser.execute_script("localStorage.clear()")
    show(page[0])
    assert not browser.execute_script("return exported()[0].note")
    browser.find_element("id", "import").send_keys(str(tmp_path / "captions.json"))
    time.sleep(0.3)
    browser.switch_to.alert.accept()
    tick(browser, "note", "with a note")
    assert browser.execute_script("return exported()") == rows
    browser.execute_script("localStorage.clear()")


def test_a_link_shows_the_same_filters_and_image(browser, show, page):
    show(page[0])
    tick(browser, "aspect", "road")
    choose(browser, "query", "shirt")
    choose(browser, "other", "-1")
    browser.find_element("css selector", ".tile").click()
    about = texts(browser, "#large-about")
    show(page[0], "#" + browser.current_url.split("#", 1)[1])
    assert texts(browser, "#large-about") == about and counted(browser) == (60, 120)
    assert browser.find_element("id", "other").get_attribute("value") == "-1"
    assert texts(browser, "#large-captions summary") == ["8 captions of this image outside the filters"]


def test_two_runs_are_compared_by_score(browser, show, page):
    path, one, other = page
    show(path)
    assert "Which run is better, by caption type" in browser.find_element("id", "comparison").text
    change, same = one["official_score"] - other["official_score"], one["caption"] == other["caption"]
    better, worse = (~same & (change >= 0.5)).sum(), (~same & (change <= -0.5)).sum()
    cells = texts(browser, ".compare tbody tr:last-child td")
    assert cells[:4] == ["600", str(better), str(600 - better - worse), str(worse)]
    assert cells[4:6] == [f"{run['official_score'].mean():.1f}" for run in (one, other)]
    tick(browser, "outcome", "worse")
    assert counted(browser)[1] == worse
    choose(browser, "measure", "change")
    assert texts(browser, ".tile strong")[0].startswith("−")
    bar = browser.find_element("css selector", ".tile .meter i").get_attribute("style")
    left, width = map(float, re.findall(r"[\d.]+", bar))
    assert left + width == pytest.approx(50)  # differences start at the middle
    choose(browser, "other", "-1")
    assert not browser.find_element("id", "comparison").text and counted(browser)[1] == 600
    choose(browser, "run", "1")
    assert counted(browser)[1] == 600


def test_scenarios_show_phases_cameras_and_contradictions(browser, show, page):
    show(page[0], "#view=scenarios&order=listed")
    board = browser.find_element("css selector", "#boards .card")
    heads = [head.text for head in board.find_elements("css selector", "th")]
    assert [head.split(" · ")[0] for head in heads[:5]] == [f"phase {i}" for i in range(5)]
    assert heads[5:] == ["overhead view · s0_overhead_view.mp4", "vehicle view · s0_vehicle_view.mp4"]
    assert board.find_element("css selector", ".flag").text.startswith("⚠ Contradiction in ")
    assert "red" in {tag.text for tag in board.find_elements("css selector", ".board .tag.even")}
    choose(browser, "type", "1")
    assert "vehicle · pedestrian description" in texts(browser, "#boards .type")[0]


def test_captions_with_wrong_facts_come_first(browser, show, tmp_path):
    rain = {"slot": "weather", "predicted": "rainy", "reference": "clear", "outcome": "wrong"}
    walk = {"slot": "sidewalk", "predicted": None, "reference": "both", "outcome": "omitted"}
    walk["words"] = (None, "sidewalks on both sides")
    dry = {"slot": "surface", "predicted": "dry", "reference": "dry", "outcome": "equal"}
    hat = {"slot": "hat", "predicted": "<b>", "reference": None, "outcome": "added"}
    rows = [("Dry, clear.", "Clear and dry.", "equal in fact", [dry], 10), ("Dry.", "Dry.", None, None, 100)]
    rows += [("Dry.", "Dry, sidewalks on both sides.", "incomplete", [dry, walk, hat], 20)]
    rows += [("It is rainy.", "It is clear today.", "wrong", [rain], 90)]
    table = make_predictions(tmp_path, 4).drop_duplicates("image").reset_index(drop=True)
    table[["caption", "reference", "kind", "facts", "official_score"]] = pd.DataFrame(rows, dtype=object)
    show(write_gallery(table, tmp_path / "g.html", tmp_path), "#view=captions")
    assert texts(browser, "#captions summary") == ["1 of 1 equal in fact", "1 of 1 equal in fact"]
    assert texts(browser, ".tag") == ["weather: rainy ≠ clear", "omitted: sidewalk both", "added: hat <b>"]
    assert texts(browser, "#captions .fact") == ["rainy.", "clear", "sidewalks on both sides."]
    tick(browser, "kind", "incomplete")
    assert counted(browser) == (1, 1)
    show(tmp_path / "g.html")
    lines = ["sidewalk 0 1 0 0 100 %", "weather 1 0 0 0 100 %", "surface 0 0 0 2 0 %", "hat 0 0 1 0 0 %"]
    assert texts(browser, ".numbers tbody tr") == lines  # most errors first
    browser.find_elements("css selector", ".numbers tbody button")[1].click()
    assert browser.find_element("id", "count").text == "1 image, 1 of 4 captions · weather wrong or omitted"
    cards = Page(caption_cards(table, tmp_path).data)
    assert "weather: rainy ≠ clear" in cards.text and "sidewalk: both omitted" in cards.text


def test_frame_boxes_and_video_are_shown(browser, show, tmp_path):
    run, media = tmp_path / "run", tmp_path / "wts a"
    media.mkdir()
    write_gray(media / "v.mp4", range(0, 200, 4))
    Image.new("RGB", (200, 100)).save(media.parent / "frame.jpg")
    table = make_predictions(run, 1).assign(start_s=2.5, end_s=4.0, frame_width_px=200, frame_height_px=100)
    table = table.assign(
        box_pedestrian_xywh_px="40 20 60 50", box_vehicle_xywh_px="", frame="images/avg0.jpg"
    )
    for video, root in (
        (media / "v.mp4", run),
        (media / "v.mp4", None),
        ("../v.mp4", media),
        ("none.mp4", media),
    ):
        outside = table.assign(frame="../frame.jpg", video_path=str(video))
        (entry,) = read_data(write_gallery(outside, run / "g.html", run, media_root=root))["images"]
        assert entry["frame"] is None and entry["clip"] is None
    for video in ("v.mp4", str(media / "v.mp4")):
        path = write_gallery(table.assign(video_path=video), run / "g.html", run, media_root=media)
        (entry,) = read_data(path)["images"]
        assert entry["frame"] == "images/avg0.jpg" and entry["clip"] == "../wts%20a/v.mp4#t=2.500,4.000"
    show(path, "#image=images/avg0.jpg")
    boxes = browser.find_elements("css selector", ".box")
    assert [box.text for box in boxes] == ["pedestrian"]
    assert "left: 20%; top: 20%; width: 30%; height: 50%" in boxes[0].get_attribute("style")
    for picture in browser.find_elements(
        "css selector", ".picture img"
    ):  # squeezed into a square for the model
        assert picture.size["width"] == pytest.approx(2 * picture.size["height"], abs=2)
    time.sleep(1)
    assert browser.execute_script("return document.querySelector('video').currentTime") == 2.5


def test_odd_pages_work(browser, show, tmp_path):
    draw_image(tmp_path / "a.png", 1)
    plain = pd.DataFrame([("a.png", "vehicle", "full", "A car waits.")], columns=list(gallery.REQUIRED))
    place = make_predictions(tmp_path, 2).assign(phase=0, label="0", view="vehicle_view", video="v.mp4")
    tables = {"plain": plain, "empty": plain[:0], "place": place, "new": place.drop(columns="reference")}
    for name, table in tables.items():
        path = write_gallery(table, tmp_path / f"{name}.html", tmp_path)
        for view in ("overview", "captions", "scenarios"):
            show(path, f"#view={view}")
            assert counted(browser)[1] == len(table)
        if name == "place":
            assert len(browser.find_elements("css selector", "#boards img")) == 2  # of one phase and camera
    show(path, "#view=captions")
    assert "eference" not in browser.find_element("id", "main").text


@pytest.mark.slow
def test_100000_captions_open_and_filter_fast(browser, show, tmp_path):
    """On two idle cores it opens in 0.95 s and filters in 0.05 s at most; the bounds leave room for a busy machine."""
    predictions = make_predictions(tmp_path, 10_000, draw=False)
    draw_image(tmp_path / "images" / "avg0.jpg", 0)
    for i in range(1, 10_000):
        os.link(tmp_path / "images" / "avg0.jpg", tmp_path / "images" / f"avg{i}.jpg")
    path = write_gallery(predictions, tmp_path / "g.html", tmp_path)
    start = time.perf_counter()
    show(path)
    assert counted(browser) == (10_000, 100_000)
    assert time.perf_counter() - start < 9
    times = browser.execute_script(
        """const times = [];
        for (const change of [{query: "green"}, {query: "green 17"}, {query: ""}, {low: 30, high: 70}, {view: "captions"},
                              {low: null}, {view: "scenarios"}, {order: "down"}, {view: "overview"}]) {
          const start = performance.now();
          Object.assign(state, change);
          update();
          document.body.offsetHeight;
          times.push(performance.now() - start);
        }
        return times;"""
    )
    print(times)
    assert sorted(times)[len(times) // 2] < 600, times
    assert len(browser.find_elements("css selector", ".tile")) < 500
