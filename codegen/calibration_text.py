"""What models read when we look at how large their activations are: kinds of text that people give to models, written for this
purpose. Nothing of it is among the texts on which packs are measured (ferrum/text/sample_text.py)."""

from __future__ import annotations

TEXTS = (
    "Glaciers move because ice, under enough weight, behaves like a very thick liquid. Snow that falls year after year is "
    "pressed into grains, then into solid ice, and once the layer is some thirty metres deep its lower part begins to creep "
    "downhill. The surface stays brittle, which is why crevasses open where the slope bends. A valley glacier may advance by "
    "half a metre a day and still shrink, if more ice melts at its tongue than arrives from above. The stones it leaves "
    "behind, called moraines, tell geologists how far the ice once reached.\n",
    "\"You promised to sell the piano,\" said Edwin. He had not taken off his coat. The old woman turned a page of her "
    "newspaper and did not look up. \"I promised to think about it. That is a different thing, and I have thought.\" Outside "
    "somebody was trying to start a motorcycle. Twice it coughed and fell silent; the third time it roared, and the windows "
    "hummed with it. \"Listen,\" she said, \"even the glass knows which note it likes.\"\n",
    "import argparse\nimport sqlite3\n\n\nclass Inventory:\n    def __init__(self, path: str) -> None:\n        self.db = "
    "sqlite3.connect(path)\n        self.db.execute(\"CREATE TABLE IF NOT EXISTS parts (sku TEXT PRIMARY KEY, amount "
    "INTEGER)\")\n\n    def take(self, sku: str, amount: int) -> bool:\n        row = self.db.execute(\"SELECT amount FROM "
    "parts WHERE sku = ?\", (sku,)).fetchone()\n        if row is None or row[0] < amount:\n            return False\n        "
    "self.db.execute(\"UPDATE parts SET amount = amount - ? WHERE sku = ?\", (amount, sku))\n        return True\n",
    "Question: Can you explain why the sky turns red in the evening, in words for a child of eight?\nAnswer: Sunlight is a "
    "mixture of all colours. When the sun is low, its light has a long way through the air to reach you. On this way the air "
    "pushes blue light to the sides, more than any other colour. What is left when it arrives is mostly yellow and red, and so "
    "the clouds look as if they were painted.\nQuestion: And why is it not green?\nAnswer: Green lies between blue and yellow. "
    "Most of it gets lost too.\n",
    "static int compare(const void *a, const void *b) {\n    const struct entry *x = a, *y = b;\n    return (x->key > y->key) "
    "- (x->key < y->key);\n}\n\nint main(void) {\n    struct entry table[64];\n    size_t n = 0;\n    while (n < 64 && "
    "scanf(\"%ld %31s\", &table[n].key, table[n].name) == 2)\n        n++;\n    qsort(table, n, sizeof table[0], "
    "compare);\n    for (size_t i = 0; i < n; i++)\n        printf(\"%8ld  %s\\n\", table[i].key, table[i].name);\n    return "
    "0;\n}\n",
    "A train leaves at 9:20 and covers 132 km by 11:05. How fast is it on average?\nFrom 9:20 to 11:05 there are 105 minutes, "
    "which is 105 / 60 = 1.75 hours. The speed is 132 / 1.75 = 75.43 km/h, so about 75 km/h.\nLet f(x) = 3x^2 - 12x + 7. Its "
    "derivative is f'(x) = 6x - 12, which is zero at x = 2; there f(2) = 12 - 24 + 7 = -5, the least value that f takes.\n",
    "# Release notes\n\n## 4.2.0\n\n- **Search**: results are ranked by date unless `--sort=relevance` is given.\n- Uploads "
    "above 2 GB resume after a lost connection.\n- Fixed: the calendar showed holidays of the wrong country (thanks to "
    "everybody who wrote to us).\n\n| platform | download | size |\n|---|---|---|\n| Linux | "
    "[tar.gz](https://example.org/4.2.0/linux) | 38 MB |\n| macOS | [dmg](https://example.org/4.2.0/mac) | 41 MB |\n",
    "{\"order\": 70412, \"customer\": {\"name\": \"R. Okafor\", \"city\": \"Lagos\", \"vip\": false}, \"items\": [{\"sku\": "
    "\"LMP-08\", \"count\": 2, \"price\": 19.9}, {\"sku\": \"CBL-31\", \"count\": 1, \"price\": 4.5}], \"total\": 44.3, "
    "\"notes\": null, \"shipped\": \"2021-03-18T07:45:00Z\"}\n<ul class=\"menu\">\n  <li><a href=\"/about\">About "
    "us</a></li>\n  <li><a href=\"/contact?from=menu\">Contact</a></li>\n</ul>\n",
    "Dear Ms Lindqvist,\n\nthank you for your letter of the second of May. The committee has read your proposal with great "
    "interest and would like to invite you to present it in person. Please let us know by the end of the month whether the "
    "14th or the 15th of June would suit you; travel costs will be paid. If you need a projector or an interpreter, a short "
    "note to this office is enough.\n\nYours sincerely,\nH. Brandt\n",
    "Der Bäcker an der Ecke öffnet um sechs, aber das beste Brot ist oft schon um sieben verkauft. Le marché se tient chaque "
    "samedi sur la place; on y trouve des fromages, des fleurs et parfois de vieux livres. Mi abuela decía que quien tiene "
    "prisa come la sopa fría. 这座桥建于一九三六年，每天有两万辆汽车通过。 "
    "Поезд опоздал на сорок минут, и никто не удивился. 雨の日には図書館がいちばん静かだ。\n",
    "The senate passed the water bill on Thursday by 51 votes to 44, after two days of debate. Under the new law, cities with "
    "more than 100,000 inhabitants must replace lead pipes within ten years; smaller towns may apply for loans at 1.5 percent. "
    "Opponents said that the cost, put at $3.8 billion, would fall on tenants. \"We were elected to fix things that nobody "
    "sees,\" said the bill's sponsor. The governor is expected to sign it next week.\n",
    "To make the pickles, wash two kilos of small cucumbers and pack them upright into clean jars. Boil a litre of water with "
    "60 grams of salt, a spoonful of sugar, and half a litre of vinegar. Add dill, two cloves of garlic and a few peppercorns "
    "to each jar, pour the hot liquid over them until they are covered, and close the lids at once. Keep the jars in a dark, "
    "cool place for three weeks before you open the first one.\n",
)  # fmt: skip
