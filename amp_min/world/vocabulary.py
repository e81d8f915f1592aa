"""What there is in the picture world: kinds of object, their colors, sizes, places, themes, and what is asked
about them."""

from amp_min.world import drawing

COLORS = list(drawing.RGB)
SIZES = ["small", "large"]
NUMBERS = {1: "one", 2: "two", 3: "three"}
THEMES = {"street": ["house", "car", "tree", "lamp"], "sea": ["boat", "sun", "cloud", "duck"],
          "garden": ["flower", "tree", "cat", "sun"], "home": ["chair", "lamp", "cup", "cat"],
          "park": ["dog", "ball", "kite", "umbrella"]}
KINDS = sorted(drawing.ICONS)
USUAL_COLOR = {"house": "red", "car": "red", "tree": "green", "lamp": "yellow", "boat": "blue", "sun": "yellow",
               "cloud": "blue", "duck": "yellow", "flower": "purple", "cat": "black", "chair": "black", "cup": "blue",
               "dog": "black", "ball": "red", "kite": "purple", "umbrella": "black"}
PLACES = [["at the top left", "at the top", "at the top right"],
          ["on the left", "in the middle", "on the right"],
          ["at the bottom left", "at the bottom", "at the bottom right"]]
AFFORDANCES = [("Can a person sit down here?", ["chair"]), ("Can a person travel away from here?", ["car", "boat"]),
               ("Is there an animal to play with?", ["dog", "cat", "duck"]), ("Can a person drink here?", ["cup"]),
               ("Is there something to read by at night?", ["lamp"]), ("Is there something to stand under in the rain?", ["umbrella", "tree"])]
ASPECTS = ["description", "existence", "attribute", "counting", "spatial", "reasoning"]     # MRHal's six
DESCRIBE = "Describe the image in detail."
