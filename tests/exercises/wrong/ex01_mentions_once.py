"""Fault: an object counts once a caption, as in metrics.chair.

Loses: test_every_mention_counts test_expected_number test_long_captions_weigh_more
"""

def chair(captions, scenes, names):
    if not captions or len(captions) != len(scenes):
        raise ValueError(f"{len(captions)} captions and {len(scenes)} scenes: give one of each for every picture")
    mentions = [list({names[word]: 0 for word in caption if word in names}) for caption in captions]
    invented = [[name for name in said if name not in scene] for said, scene in zip(mentions, scenes)]

    def share(parts, wholes):
        whole = sum(map(len, wholes))
        return sum(map(len, parts)) / whole if whole else 0.0

    return {
        "chair_i": share(invented, mentions),
        "chair_s": sum(map(bool, invented)) / len(captions),
        "coverage": share([set(said) & set(scene) for said, scene in zip(mentions, scenes)], scenes),
    }
