"""ex01 (chapter 1): count hallucinated objects as CHAIR's authors do

Goal          `metrics.chair` counts an object once a caption. The original CHAIR counts every mention, and knows that
              an automobile is a car. Write that one, and see which of its three figures a chatty model can improve.
Deliverable   chair(), below
Points        8
Time          30 minutes
Hardware      any CPU, under a second
Expected      the example in the docstring: chair_i 1/4, chair_s 1/2, coverage 2/3
Check         pytest tests/exercises -m ex01 --student my

Hints, each says more than the one before
1. Make each caption a list of known names first. Everything after that is counting.
2. chair_i and coverage are one division each, after both sums over all captions are complete. An average of the
   captions' own shares is another number: it lets a caption of one word weigh as much as one of fifty.
3. For chair_i go through the list, for coverage through the set of it.
"""


def chair(captions, scenes, names):
    """CHAIR with every mention counted (Rohrbach et al. 2018).

    captions: one list of words for each picture, in the order written, such as ["car", "dog", "automobile"].
    scenes:   one list of the objects that the picture shows, under their known names, each once.
    names:    {word: known name of the object}; a word that is not in it names no object and is passed over.
    Returns a dict of floats in 0-1:
        chair_i   mentions of objects that are not in the picture / all mentions of objects, over all captions
        chair_s   captions with at least one such mention / captions
        coverage  objects shown that their caption mentions / objects shown, over all captions, each once
    and 0.0 for a share of nothing. Raises ValueError for no captions, or when captions and scenes differ in number.

    names = {"car": "car", "automobile": "car", "dog": "dog", "cat": "cat"}
    chair([["a", "car", "dog", "automobile"], ["cat"]], [["car"], ["cat", "tree"]], names)
    -> {"chair_i": 0.25, "chair_s": 0.5, "coverage": 0.6667}
    """
    raise NotImplementedError
