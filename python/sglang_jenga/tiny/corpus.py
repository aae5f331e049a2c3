# SPDX-License-Identifier: Apache-2.0
"""The text the tiny tokenizer is trained on.

Written for this project (Apache-2.0), so that nothing has to be downloaded. It mixes prose, dialogue,
numbers, JSON and code because those are what the tests send: a merge table learned on prose
alone would cut JSON and digits into single bytes and make constrained decoding needlessly slow.
"""

TEXT = """\
The harbour town had one long quay and three kinds of boats. The ferries kept their places all day,
because people wanted to find them where they had left them. The fishing boats came in, unloaded, and
gave their berth to whoever arrived next. The barges were so large that one barge needed the room of
forty rowing boats, and the harbour master never knew in the morning how many of each kind the evening
would bring. His father had painted lines on the quay: this part for ferries, that part for fishing
boats, the far end for barges. It was a tidy picture and a bad harbour. On some days the ferries were
turned away while the far end lay empty; on other days a barge waited outside with a cargo of apples
while forty small berths stood unused, one here, one there, never side by side.

So the daughter of the harbour master scraped off the paint. She counted the rings in the stone and
found that every boat could be measured in whole rings, and that a stretch of rings which every kind
could share was not as long as she had feared. She let each captain keep his own boats together, so
that when he sailed the whole stretch came free at once. She wrote down who held what, which berths
were promised, which were only warm, and which were truly empty. When a barge arrived, she did not move
a single boat: she asked which warm berths had been waiting longest, and she freed neighbours first.

"How many berths are free?" asked the clerk. "That is the wrong question," she answered. "Ask me what
is needed, what is held, and what the difference costs." The clerk wrote: needed 384, held 400, waste
four percent. In the old book the same day read: needed 384, held 1024, waste sixty-two percent.

A long memory and a short memory are both useful. A reader who remembers the whole book can tell you who
the stranger in the last chapter is; a reader who remembers only the last page can tell you whether the
sentence is finished. Most stories need a few of the first kind of reader and many of the second. If you
give every reader a shelf as long as the library, you will run out of wood before you run out of readers.
If you give every reader one page, nobody will know why the stranger is crying. The art is to know, for
each reader, exactly which pages are still needed, and to hand the others back as soon as the page turns.

Once upon a time there was a small machine that could only count. It counted sheep, rivers, stars and
mistakes. When it was asked to count itself it answered: one. When it was asked whether it was sure, it
counted again, and answered: still one. The engineers were pleased, since most machines they had built
before would have answered two, or none, or would have stopped answering at all. They put it in a room
with a window, and it counted the people who walked by: one, two, three, four, five, six, seven, eight,
nine, ten, eleven, twelve, and then it rained and it counted umbrellas instead.

Question: What is the capital of a country that has no cities? Answer: There is none, and asking twice
will not build one. Question: How do you measure a river? Answer: In a moment, and then again in another
moment. Question: Which number comes after 4095? Answer: 4096. Question: And after 65535? Answer: 65536.

Please write a short letter to a friend. Dear friend, thank you for your letter. The weather here is cold
and bright, the trees are without leaves, and the mountains look nearer than they are. I have read the
book that you sent me, first quickly and then slowly. The second time I understood why you wanted me to
read it. Please tell your sister that the blue cup arrived without a crack. With kind regards, yours.

To make bread you need flour, water, salt and time. Mix the flour with the water and wait for one hour.
Add the salt. Fold the dough four times in two hours, then let it rest in a cool place through the night.
In the morning heat the oven as hot as it will go, and bake the bread until it sounds hollow when you
knock on it. People who are in a hurry add yeast; people who are not in a hurry add another day.

The system answers the user, the user answers the system, and the assistant writes down what was said.
You are a helpful assistant. Answer briefly. Explain the difference between a queue and a stack. A queue
returns what came first; a stack returns what came last. A cache returns what was wanted before, and
hopes that it will be wanted again. Every cache is a bet about the future made with evidence of the past.

{"name": "Ada", "age": 36, "city": "London", "tags": ["first", "second"], "active": true, "score": 0.75}
{"name": "Alan", "age": 41, "city": "Manchester", "tags": [], "active": false, "score": null}
[{"id": 1, "value": 10}, {"id": 2, "value": 20}, {"id": 3, "value": 30}, {"id": 4, "value": -40.5}]
{"type": "object", "properties": {"answer": {"type": "string"}, "number": {"type": "integer"}}}

def count(items):
    total = 0
    for index, item in enumerate(items):
        if item is None:
            continue
        total += item.size
    return total

class Harbour:
    def __init__(self, length, berths=None):
        self.length = length
        self.berths = berths or []

    def free(self):
        return self.length - sum(berth.length for berth in self.berths)

The colours of the flags were red, green, blue, white, yellow and black. The days of the week are Monday,
Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday. The months are January, February, March, April,
May, June, July, August, September, October, November and December. In the year 1492 a ship sailed west; in
1969 another one sailed up. 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 20 24 32 48 64 100 128 200 256 300
512 1000 1024 2048 4096 8192 10000 16384 32768. Three times seven is twenty-one; six times nine is
fifty-four; a dozen dozens make one hundred and forty-four, which the merchants call a gross.

When the last ferry had gone, the lights along the quay went out one after another, and the water kept the
picture of each lamp a little longer than the lamp itself. That, she thought, is what remembering is: not
keeping everything, and not keeping it forever, but keeping the right things until somebody comes back.
"""
