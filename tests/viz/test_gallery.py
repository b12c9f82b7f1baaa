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
from PIL import Image, ImageDraw

from beit3lib.data.schema import ASPECTS, SUBJECTS
from beit3lib.track2.metrics import score_name
from beit3lib.viz import gallery
from beit3lib.viz.gallery import caption_cards, compare_table, image_row, storyboard, write_gallery

HOSTILE = 'A <b>bold</b> car </script><script>window.hit = 1</script> <!-- & "quoted" \u2028 <img src=x onerror="window.hit=2">'
COLORS = "red blue green white black gray yellow brown".split()


def draw_image(path, seed: int, size: int = 48) -> None:
    rng = random.Random(seed)
    image = Image.new("RGB", (size, size), tuple(rng.randrange(256) for _ in range(3)))
    ImageDraw.Draw(image).rectangle((8, 8, size // 2, size // 2), fill="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_predictions(root, images: int, seed: int = 0, wrong: float = 0.3, draw: bool = True) -> pd.DataFrame:
    """Ten captions per image, five phases and two cameras per scenario; some captions differ in one word."""
    rng, rows = random.Random(seed), []
    for i in range(images):
        name = f"images/avg{i}.jpg"
        if draw and not (root / name).exists():
            draw_image(root / name, i)
        scenario, phase = f"s{i // 10}", i % 5
        view = "vehicle_view" if i // 5 % 2 else "overhead_view"
        about = {
            "image": name,
            "scenario": scenario,
            "split": "val",
            "source": "wts",
            "view": view,
            "video": f"{scenario}_{view}.mp4",
        }
        for subject in SUBJECTS:
            for aspect in ASPECTS:
                color, number = COLORS[i // 10 % len(COLORS)], rng.randrange(60)
                reference = f"The {subject} {aspect} is {number} meters from a pole and has a {color} shirt."
                exact = rng.random() > wrong
                caption = reference if exact else reference.replace(color, rng.choice(COLORS))
                probs = [round(rng.uniform(0.6, 1), 3) for _ in caption.split()]
                row = {
                    **about,
                    "phase": phase,
                    "label": str(phase),
                    "subject": subject,
                    "aspect": aspect,
                    "caption": caption,
                }
                score = 100.0 if caption == reference else round(rng.uniform(20, 90), 2)
                log_prob = float(np.log(probs).mean())
                rows.append(
                    {
                        **row,
                        "reference": reference,
                        "word_probs": probs,
                        "log_prob": log_prob,
                        "official_score": score,
                    }
                )
    return pd.DataFrame(rows)


class Page(HTMLParser):
    """The scripts, visible text and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses, self.scripts, self.text, self._inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [found[name] for name in ("src", "href", "srcset", "poster") if name in found]
        assert not [name for name in found if name.startswith("on")], found
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def read_data(path) -> dict:
    return json.loads(Page(path.read_text("utf-8")).scripts[0])


def test_every_caption_is_in_the_page_once(tmp_path):
    one, other = make_predictions(tmp_path, 7), make_predictions(tmp_path, 7, seed=1)[3:]
    data = read_data(
        write_gallery(
            one.sample(frac=1, random_state=0), tmp_path / "g.html", tmp_path, others={"epoch 2": other}
        )
    )
    for table, run in zip((one, other), data["runs"], strict=True):
        rows = zip(
            data["rows"]["image"],
            data["rows"]["type"],
            run["caption"],
            run["measures"]["official_score"],
            strict=True,
        )
        found = {}
        for image, kind, caption, score in rows:
            if caption >= 0:
                found[(data["images"][image]["image"], *data["types"][kind])] = (
                    data["texts"][caption],
                    score,
                )
        keys = table[["image", "subject", "aspect"]].itertuples(index=False, name=None)
        assert found == dict(
            zip(keys, zip(table["caption"], table["official_score"], strict=True), strict=True)
        )
        assert sum(caption >= 0 for caption in run["caption"]) == len(table)


def test_html_in_captions_and_names_is_text(tmp_path):
    predictions = make_predictions(tmp_path, 2).astype({"caption": object, "aspect": object})
    for column in ("caption", "reference", "scenario", "view", "label", "aspect"):
        predictions.loc[0, column] = HOSTILE
    page = Page(
        write_gallery(predictions, tmp_path / "g.html", tmp_path, HOSTILE, {HOSTILE: predictions}).read_text(
            "utf-8"
        )
    )
    assert len(page.scripts) == 2
    assert HOSTILE in json.loads(page.scripts[0])["texts"]
    assert "window.hit" not in page.scripts[1]
    assert HOSTILE in page.text


def test_the_page_loads_nothing_from_elsewhere(tmp_path):
    path = write_gallery(make_predictions(tmp_path, 2), tmp_path / "g.html", tmp_path)
    assert all(address.startswith("data:") for address in Page(path.read_text()).addresses)
    assert not re.search(r"https?:|@import|url\(", path.read_text())
    assert "default-src 'none'" in path.read_text()


def test_images_are_part_of_a_small_page_and_only_linked_from_a_large_one(tmp_path, monkeypatch):
    predictions = make_predictions(tmp_path, 3).replace({"image": {"images/avg0.jpg": "images/a b#1.jpg"}})
    draw_image(tmp_path / "images/a b#1.jpg", 0)
    entries = read_data(write_gallery(predictions, tmp_path / "pages" / "g.html", tmp_path))["images"]
    assert entries[0]["src"] == "../images/a%20b%231.jpg"
    assert all(entry["embedded"].startswith("data:image/jpeg;base64,") for entry in entries)
    monkeypatch.setattr(gallery, "EMBED_IMAGES", 2)
    entries = read_data(write_gallery(predictions, tmp_path / "g.html", tmp_path))["images"]
    assert not any("embedded" in entry for entry in entries)


@pytest.mark.parametrize(
    "name", ["../secret.png", "images/../../secret.png", "/secret.png", "..\\secret.png"]
)
def test_an_image_outside_image_root_is_refused(tmp_path, name):
    draw_image(tmp_path / "secret.png", 1)
    (tmp_path / "run").mkdir()
    name = str(tmp_path / "secret.png") if name.startswith("/") else name
    predictions = make_predictions(tmp_path / "run", 1).assign(image=name)
    path = write_gallery(predictions, tmp_path / "run" / "g.html", tmp_path / "run")
    (entry,) = read_data(path)["images"]
    assert entry["problem"] == "image path outside image_root"
    assert "src" not in entry and "embedded" not in entry
    assert "1 image not shown: image path outside image_root." in path.read_text()
    assert "data:image" not in caption_cards(predictions, tmp_path / "run")


def test_images_that_cannot_be_shown_are_counted(tmp_path):
    predictions = make_predictions(tmp_path, 4)
    images = [tmp_path / name for name in predictions["image"].unique()]
    images[0].unlink()
    images[1].unlink()
    os.mkfifo(images[1])
    images[2].write_bytes(b"\xff\xd8\xff broken")
    path = write_gallery(predictions, tmp_path / "g.html", tmp_path)
    assert "2 images not shown: image not found." in path.read_text()
    assert "1 image not shown: image cannot be read" in path.read_text()
    assert len(read_data(path)["rows"]["image"]) == 40


def test_missing_and_empty_texts_differ(tmp_path):
    predictions = make_predictions(tmp_path, 1).astype(
        {"caption": object, "reference": object, "phase": float}
    )
    predictions.loc[0, ["caption", "reference"]] = ["", np.nan]
    predictions.loc[1, "reference"] = ""
    data = read_data(write_gallery(predictions, tmp_path / "g.html", tmp_path))
    assert data["texts"][data["runs"][0]["caption"][0]] == ""
    assert data["rows"]["reference"][0] == -1
    assert data["texts"][data["rows"]["reference"][1]] == ""
    assert data["images"][0]["about"] == "phase 0 · prerecognition"


def test_four_columns_are_enough(tmp_path):
    draw_image(tmp_path / "a.png", 1)
    table = pd.DataFrame([("a.png", "vehicle", "full", "A car waits.")], columns=list(gallery.REQUIRED))
    assert read_data(write_gallery(table, tmp_path / "g.html", tmp_path))["texts"] == ["A car waits."]


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(ValueError, match="found image, text. Add subject, aspect, caption."):
        write_gallery(pd.DataFrame(columns=["image", "text"]), tmp_path / "g.html")
    assert not list(tmp_path.iterdir())


def test_two_runs_need_different_names(tmp_path):
    table = make_predictions(tmp_path, 1)
    with pytest.raises(ValueError, match="expected different names"):
        write_gallery(table, tmp_path / "g.html", tmp_path, others={"demo": table}, name="demo")


@pytest.mark.parametrize(
    "column, value",
    [
        ("caption", ["a", "list"]),
        ("caption", "a lone surrogate \ud800"),
        ("official_score", {"a": 1}),
        ("official_score", 10**400),
        ("official_score", float("inf")),
        ("word_probs", [[0.5]]),
        ("word_probs", [0.5]),
        ("word_probs", "text"),
        ("phase", {}),
        ("boxes", [1, {"bbox_xywh": "x"}]),
        ("boxes", [{"bbox_xywh": [0, 0, float("nan"), 1]}]),
        ("attention", [1]),
        ("attention", {"red": [[1.0, float("nan")]]}),
        ("attention", {"red": [[1], [1, 2]]}),
        ("reference", "dark " * 20_000),
    ],
)
def test_odd_values_of_one_caption_do_not_stop_the_page(tmp_path, column, value):
    predictions = make_predictions(tmp_path, 1)
    values = (
        predictions[column].astype(object)
        if column in predictions
        else pd.Series([None] * len(predictions), dtype=object)
    )
    values[0] = value
    path = write_gallery(predictions.assign(**{column: values}), tmp_path / "g.html", tmp_path)
    assert len(read_data(path)["rows"]["image"]) == 10
    caption_cards(predictions.assign(**{column: values}), tmp_path)


def test_word_probs_of_another_length_are_skipped_and_counted(tmp_path):
    predictions = make_predictions(tmp_path, 1)
    predictions.at[0, "word_probs"] = [0.5]
    path = write_gallery(predictions, tmp_path / "g.html", tmp_path)
    assert "1 caption without confidence: word_probs has another length than the words." in path.read_text()
    assert read_data(path)["runs"][0]["confidence"].count(0) == 1


def test_a_score_without_wordnet_is_not_called_official(tmp_path):
    predictions = make_predictions(tmp_path, 1)
    for official in (True, False):
        data = read_data(write_gallery(predictions, tmp_path / "g.html", tmp_path, official=official))
        assert data["measures"]["official_score"]["title"] == score_name(official)
    assert "Official score" not in caption_cards(predictions, tmp_path, official=False)


def test_comparison_takes_the_captions_that_every_run_has(tmp_path):
    one = make_predictions(tmp_path, 3, draw=False)
    other = one.assign(official_score=one["official_score"] - 5)[5:]
    table = compare_table(one, {"small": other, "epoch 1": other}, "big")
    assert list(table.columns) == ["captions", "big", "small", "epoch 1"]
    assert table.loc[("all", "all"), "captions"] == 25 == table["captions"].sum() - 25
    assert (table["big"] - table["small"]).to_numpy() == pytest.approx(5)
    assert table.loc[("all", "all"), "big"] == pytest.approx(one["official_score"][5:].mean())
    assert compare_table(one, {"other data": one.assign(image="other.jpg")}).empty


def test_the_command_writes_the_page_of_write_gallery(tmp_path, capsys):
    run = tmp_path / "demo"
    predictions = make_predictions(run, 2)
    for name, table in (("predictions", predictions), ("first", predictions[::2])):
        records = json.loads(table.to_json(orient="records", double_precision=15))
        (run / f"{name}.json").write_text(json.dumps({"meta": {"comparable": False}, "predictions": records}))
    command = [str(run / "predictions.json"), "--compare_with", f"epoch 1={run / 'first.json'}"]
    gallery.main(command)
    assert capsys.readouterr().out.strip() == str(run / "gallery.html")
    others = {"epoch 1": predictions[::2]}
    write_gallery(
        predictions, run / "expected.html", run, "Captions of run 'demo'", others, official=False, name="demo"
    )
    assert (run / "gallery.html").read_text() == (run / "expected.html").read_text()
    with pytest.raises(SystemExit, match="nowhere: expected a folder"):
        gallery.main([*command, "--image_root", "nowhere"])
    with pytest.raises(SystemExit, match="expected a name other than demo"):
        gallery.main([*command[:2], str(run / "first.json")])


def test_cards_hold_their_captions_and_fold_exact_ones(tmp_path):
    predictions = make_predictions(tmp_path, 3, wrong=0.5)
    html = caption_cards(predictions, tmp_path, max_cards=2)
    assert html._repr_html_() == html
    page = Page(html)
    assert all(" ".join(text.split()) in " ".join(page.text.split()) for text in predictions["caption"][:20])
    assert len(page.addresses) == 2 and not page.scripts
    exact = (predictions["caption"] == predictions["reference"])[:10].sum()
    assert f"{exact} of 10 equal to the reference" in page.text
    assert (
        html.count("<mark") - 1 == (predictions["caption"] != predictions["reference"])[:20].sum()
    )  # one is in the key


def test_cards_show_hostile_and_missing_texts_as_text(tmp_path):
    predictions = make_predictions(tmp_path, 1).astype({"caption": object, "reference": object})
    predictions.loc[0, ["caption", "reference", "scenario"]] = [HOSTILE, None, HOSTILE]
    predictions.loc[1, ["caption", "reference"]] = ["", ""]
    page = Page(caption_cards(predictions, tmp_path))
    assert page.scripts == [] and " ".join(HOSTILE.split()) in " ".join(page.text.split())
    assert all(text in page.text for text in ("(no reference)", "(empty reference)", "(empty caption)"))


def test_storyboard_has_phases_as_columns_and_cameras_as_rows(tmp_path):
    predictions = make_predictions(tmp_path, 20, wrong=1)
    predictions = predictions[predictions["aspect"] == "moving"]
    html = storyboard(predictions[::-1], "s1", tmp_path)
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)
    assert [head.split(" · ")[0] for head in heads] == [f"phase {i}" for i in range(5)]
    assert html.count("<tbody>") == 2 and html.count("<img") == 10
    assert "Contradiction in vehicle · moving: color of the upper clothing" in html
    with pytest.raises(ValueError, match="expected one of s0, s1, found 's9'"):
        storyboard(predictions, "s9", tmp_path)


def test_an_image_row_takes_paths_and_images(tmp_path):
    draw_image(tmp_path / "a.png", 0)
    page = Page(
        image_row([tmp_path / "a.png", Image.new("L", (9, 9))], ["a <b> $x$", "gray"], "First images")
    )
    assert len(page.addresses) == 2 and "a <b> $x$" in page.text


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
    one["boxes"] = [[{"label": "pedestrian", "bbox_xywh": [0.2, 0.2, 0.3, 0.5]}]] * len(one)
    path = write_gallery(
        one, root / "gallery.html", root, "Captions of run 'demo'", {"epoch 1": other}, name="demo"
    )
    return path, one, other


def show(browser, path, width=1280, dark=False, fragment=""):
    device = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    browser.get("about:blank")
    browser.get(path.as_uri() + fragment)


def counted(browser) -> tuple[int, int]:
    """Images and captions that match, as the page counts them."""
    images, captions = browser.find_element("id", "count").text.split(", ", 1)
    return int(images.split()[0].replace(",", "")), int(captions.split()[0].replace(",", ""))


def tick(browser, facet: str, value: str, kind: str = "tick") -> None:
    script = """const facet = facets.find(f => f.name === arguments[0]);
    facet.nodes.find(n => n.key === arguments[1])[arguments[2]].click();"""
    browser.execute_script(script, facet, value, kind)


def choose(browser, field: str, value: str) -> None:
    script = """const f = document.getElementById(arguments[0]); f.value = arguments[1];
    f.dispatchEvent(new Event("input", {bubbles: true})); f.dispatchEvent(new Event("change", {bubbles: true}));"""
    browser.execute_script(script, field, value)
    time.sleep(0.2)  # a search waits for the end of typing


def press(browser, *keys) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def console(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def test_the_page_opens_with_an_overview_of_the_lowest_scores(browser, page):
    path, one, _ = page
    show(browser, path)
    means = one.groupby("image", sort=False)["official_score"].mean().sort_values(kind="stable")
    shown = [text.text for text in browser.find_elements("css selector", ".tile strong")]
    assert shown == [f"{mean:.1f}" for mean in means]
    exact = one["caption"] == one["reference"]
    assert (
        f"without {exact.sum()} that are equal to the reference"
        in browser.find_element("id", "histogram-title").text
    )
    drawn = browser.execute_script("return [...select().bins].reduce((a, b) => a + b)")
    assert drawn == (~exact).sum()
    first = exact[one["image"] == means.index[0]].sum()
    assert (
        browser.find_element("css selector", ".tile .right").text == f"{first} of 10 equal to the reference"
    )
    line = browser.find_elements("css selector", "#means tr")[0].text
    own = one[(one["subject"] == "vehicle") & (one["aspect"] == "moving")]
    assert line.startswith("vehicle · moving") and f"{own['official_score'].mean():.1f}" in line
    assert console(browser) == []


def test_facets_take_several_values_and_exclude_others(browser, page):
    path, one, _ = page
    show(browser, path)
    tick(browser, "aspect", "road")
    tick(browser, "aspect", "weather")
    assert counted(browser) == (60, 240)
    tick(browser, "phase", "3", "not")
    assert counted(browser) == (48, 192)
    tick(browser, "view", "vehicle_view")
    rows = browser.execute_script("return exported()")
    assert {(r["aspect"], r["view"]) for r in rows} == {("road", "vehicle_view"), ("weather", "vehicle_view")}
    assert "3" not in {r["phase"] for r in rows}
    counts = "return facets.find(f => f.name === 'aspect').nodes.map(n => +n.number.textContent)"
    assert browser.execute_script(counts) == [48] * 5  # of the images that match the other facets
    browser.find_element("id", "clear").click()
    assert counted(browser) == (60, 600)
    tick(browser, "result", "equal to the reference")
    assert counted(browser)[1] == (one["caption"] == one["reference"]).sum()
    assert console(browser) == []


def test_search_finds_words_of_captions_references_and_names(browser, page):
    path, one, _ = page
    show(browser, path)
    choose(browser, "query", "GREEN vehicle_view.mp4")
    wanted = (one["caption"].str.contains("green") | one["reference"].str.contains("green")) & (
        one["view"] == "vehicle_view"
    )
    assert counted(browser)[1] == wanted.sum() > 0
    choose(browser, "query", "no such word")
    assert browser.find_element("id", "empty").is_displayed()
    assert console(browser) == []


def test_dragging_over_the_histogram_selects_a_range(browser, page):
    from selenium.webdriver import ActionChains

    path, one, _ = page
    show(browser, path)
    bars = browser.find_elements("css selector", "#bars span")
    ActionChains(browser).move_to_element(bars[5]).click_and_hold().move_to_element(
        bars[14]
    ).release().perform()
    assert [browser.find_element("id", name).get_attribute("value") for name in ("low", "high")] == [
        "20",
        "60",
    ]
    assert counted(browser)[1] == one["official_score"].between(20, 60).sum() > 0
    choose(browser, "low", "")
    assert counted(browser)[1] == (one["official_score"] <= 60).sum()
    assert console(browser) == []


def test_the_large_view_opens_by_click_and_moves_by_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    path, one, _ = page
    show(browser, path, fragment="#order=listed")
    large, title = browser.find_element("id", "large"), browser.find_element("id", "large-about")
    browser.find_elements("css selector", ".tile")[1].click()
    assert large.is_displayed() and "phase 1 · recognition" in title.text
    assert browser.find_element("css selector", "#canvas img").get_property("naturalWidth") == 48
    assert browser.find_element("css selector", "#canvas .box").text == "pedestrian"
    assert len(browser.find_elements("css selector", "#large .caption")) == 10
    script = "return [...document.querySelector('#large .gen').querySelectorAll('.w small')].map(s => +s.textContent)"
    assert browser.execute_script(script) == [round(100 * p) for p in one["word_probs"][10]]
    browser.find_element("xpath", "//button[text()='attention: red']").click()
    cells = browser.find_elements("css selector", "#canvas .attention i")
    assert [float(cell.value_of_css_property("opacity")) for cell in cells] == pytest.approx(
        [0.083, 0.75, 0.333, 0.167], abs=0.001
    )
    browser.find_element("xpath", "//button[text()='attention: red']").click()
    assert not browser.find_elements("css selector", "#canvas .attention")
    press(browser, Keys.ARROW_RIGHT)
    assert "phase 2" in title.text
    press(browser, "+")
    assert browser.find_element("id", "zoom").text == "150 %"
    press(browser, Keys.ESCAPE)
    focused = "return document.activeElement.dataset.image"
    WebDriverWait(browser, 5).until(
        lambda _: not large.is_displayed() and browser.execute_script(focused) == "2"
    )
    press(browser, Keys.ARROW_LEFT, Keys.ENTER)
    assert large.is_displayed() and "phase 1" in title.text
    press(browser, Keys.ESCAPE)
    WebDriverWait(browser, 5).until(lambda _: not large.is_displayed())
    press(browser, "/")
    press(browser, "shirt")
    assert browser.find_element("id", "query").get_attribute("value") == "shirt"
    assert console(browser) == []


def test_hostile_and_empty_captions_show_as_text(browser, page):
    path, _, _ = page
    show(browser, path, fragment="#view=captions&order=listed")
    texts = [cell.text for cell in browser.find_elements("css selector", "#captions .caption .gen .text")[:2]]
    assert texts[0].split() == HOSTILE.split()
    assert texts[1] == "(empty caption)"
    browser.find_element("css selector", "#captions .thumb").click()
    assert browser.find_element("css selector", "#large .gen .text").text.split() == HOSTILE.split()
    assert browser.execute_script("return window.hit") is None
    assert console(browser) == []


@pytest.mark.parametrize("width, dark", [(1280, True), (400, False), (400, True)])
def test_nothing_is_wider_than_the_window(browser, page, tmp_path, width, dark):
    for fragment in (
        "",
        "#view=captions&other=epoch 1",
        "#view=scenarios",
        "#image=images/avg3.jpg",
        "#other=epoch 1",
    ):
        show(browser, page[0], width, dark, fragment)
        assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [
            width,
            width,
        ], fragment
        wide = browser.execute_script(
            """return [...document.querySelectorAll("body *")].filter(e => e.getClientRects().length
              && !e.closest(".scroll, #stage") && e.getBoundingClientRect().right > innerWidth + 1)
              .map(e => e.outerHTML.slice(0, 80)).slice(0, 5)"""
        )
        assert wide == [], fragment
    assert browser.save_screenshot(str(tmp_path / "shot.png"))
    with Image.open(tmp_path / "shot.png") as shot:
        background = max(shot.convert("RGB").resize((200, 160)).getcolors(40_000))[1]
    assert (sum(background) < 150) == dark
    assert browser.execute_script("return document.querySelector('.bar').offsetHeight") < 100


def test_marks_and_notes_are_kept_and_exported(browser, page):
    path, _, _ = page
    show(browser, path, fragment="#image=images/avg3.jpg")
    tools = browser.find_elements("css selector", "#large .caption .tools")
    tools[0].find_element("css selector", "button").click()
    tools[1].find_element("css selector", "input").send_keys("=wrong color")
    browser.find_element("id", "close").click()
    time.sleep(0.2)
    assert "My notes" in browser.find_element("id", "facets").text
    show(browser, path, fragment="#only.note=mark&only.note=note")
    assert counted(browser) == (1, 2)
    rows = browser.execute_script("return exported()")
    assert [(r["image"], r["marked"], r["note"]) for r in rows] == [
        ("images/avg3.jpg", True, ""),
        ("images/avg3.jpg", False, "=wrong color"),
    ]
    lines = browser.execute_script("return asCsv(exported())").split("\r\n")
    assert len(lines) == 3 and lines[0].startswith('"image","scenario"')
    assert '"\'=wrong color"' in lines[2]  # a spreadsheet must not run it as a formula
    browser.execute_script("localStorage.clear()")
    assert console(browser) == []


def test_a_link_shows_the_same_filters_and_image(browser, page):
    path, _, _ = page
    show(browser, path)
    tick(browser, "aspect", "road")
    choose(browser, "query", "shirt")
    browser.find_element("css selector", ".tile").click()
    address, title = browser.current_url, browser.find_element("id", "large-about").text
    show(browser, path, fragment="#" + address.split("#", 1)[1])
    assert browser.find_element("id", "large").is_displayed()
    assert browser.find_element("id", "large-about").text == title
    assert counted(browser) == (60, 120)
    summary = browser.find_element("css selector", "#large-captions summary")
    assert summary.text == "8 captions of this image outside the filters"


def test_two_runs_are_compared_by_score(browser, page):
    path, one, other = page
    show(browser, path)
    assert not browser.find_element("id", "comparison").text
    choose(browser, "other", "1")
    assert "Which run is better, by caption type" in browser.find_element("id", "comparison").text
    change = one["official_score"] - other["official_score"]
    same = one["caption"] == other["caption"]
    better, worse = (~same & (change >= 0.5)).sum(), (~same & (change <= -0.5)).sum()
    cells = [cell.text for cell in browser.find_elements("css selector", ".compare tbody tr:last-child td")]
    assert cells[:4] == ["600", str(better), str(600 - better - worse), str(worse)]
    assert cells[4:6] == [f"{run['official_score'].mean():.1f}" for run in (one, other)]
    tick(browser, "outcome", "worse")
    assert counted(browser)[1] == worse
    choose(browser, "measure", "change")
    assert browser.find_element("css selector", ".tile strong").text.startswith("−")
    choose(browser, "run", "1")
    assert counted(browser)[1] > 0
    assert console(browser) == []


def test_scenarios_show_phases_cameras_and_contradictions(browser, page):
    path, _, _ = page
    show(browser, path, fragment="#view=scenarios&order=listed")
    board = browser.find_element("css selector", "#boards .card")
    assert [head.text.split(" · ")[0] for head in board.find_elements("css selector", "thead th")] == [
        f"phase {i}" for i in range(5)
    ]
    assert [row.text for row in board.find_elements("css selector", "th.about")] == [
        "overhead view · s0_overhead_view.mp4",
        "vehicle view · s0_vehicle_view.mp4",
    ]
    flag = board.find_element("css selector", ".flag")
    assert flag.text.startswith("⚠ Contradiction in ")
    assert "red" in {tag.text for tag in board.find_elements("css selector", ".tag.even")}
    assert all(tag.text.startswith("⚠ ") for tag in board.find_elements("css selector", ".tag.worse"))
    choose(browser, "type", "1")
    assert "vehicle · pedestrian description" in browser.find_element("css selector", "#boards .type").text
    assert console(browser) == []


def test_a_page_of_one_image_and_one_plain_caption_works(browser, tmp_path):
    draw_image(tmp_path / "a.png", 1)
    table = pd.DataFrame([("a.png", "vehicle", "full", "A car waits.")], columns=list(gallery.REQUIRED))
    path = write_gallery(table, tmp_path / "g.html", tmp_path)
    for view in ("overview", "captions", "scenarios"):
        show(browser, path, fragment=f"#view={view}")
        assert browser.find_element("id", "count").text == "1 image, 1 caption"
    assert console(browser) == []


def test_a_page_without_captions_says_so(browser, tmp_path):
    path = write_gallery(pd.DataFrame(columns=list(gallery.REQUIRED)), tmp_path / "g.html", tmp_path)
    show(browser, path)
    assert browser.find_element("id", "empty").is_displayed()
    assert console(browser) == []


def test_images_of_one_phase_and_camera_are_all_shown(browser, tmp_path):
    predictions = make_predictions(tmp_path, 2).assign(phase=0, label="0", view="vehicle_view", video="v.mp4")
    show(browser, write_gallery(predictions, tmp_path / "g.html", tmp_path), fragment="#view=scenarios")
    assert len(browser.find_elements("css selector", "#boards img")) == 2
    assert storyboard(predictions, "s0", tmp_path).count("<img") == 2
    assert console(browser) == []


def test_a_page_without_references_has_no_reference_column(browser, tmp_path):
    path = write_gallery(
        make_predictions(tmp_path, 1).drop(columns="reference"), tmp_path / "g.html", tmp_path
    )
    show(browser, path, fragment="#view=captions")
    text = browser.find_element("id", "main").text
    assert "eference" not in text and "grey: under 75 % confident" in text
    assert console(browser) == []


@pytest.mark.slow
def test_100000_captions_open_and_filter_fast(browser, tmp_path):
    """On two idle cores it opens in 0.95 s and filters in 0.05 s at most; the bounds leave room for a busy machine."""
    predictions = make_predictions(tmp_path, 10_000, draw=False)
    draw_image(tmp_path / "images" / "avg0.jpg", 0)
    for i in range(1, 10_000):
        os.link(tmp_path / "images" / "avg0.jpg", tmp_path / "images" / f"avg{i}.jpg")
    path = write_gallery(predictions, tmp_path / "g.html", tmp_path)
    start = time.perf_counter()
    show(browser, path)
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
    assert sorted(times)[len(times) // 2] < 600, times
    assert len(browser.find_elements("css selector", ".tile")) < 500
    assert console(browser) == []
