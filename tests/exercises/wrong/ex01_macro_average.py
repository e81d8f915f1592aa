"""Fault: an average of the captions' own shares.

Loses: test_expected_number test_long_captions_weigh_more
"""

def chair(captions, scenes, names):
    if not captions or len(captions) != len(scenes):
        raise ValueError(f"{len(captions)} captions and {len(scenes)} scenes: give one of each for every picture")
    mentions = [[names[word] for word in caption if word in names] for caption in captions]
    invented = [[name for name in said if name not in scene] for said, scene in zip(mentions, scenes)]

    def share(parts, wholes):
        shares = [len(part) / len(whole) for part, whole in zip(parts, wholes) if whole]
        return sum(shares) / len(shares) if shares else 0.0

    return {
        "chair_i": share(invented, mentions),
        "chair_s": sum(map(bool, invented)) / len(captions),
        "coverage": share([set(said) & set(scene) for said, scene in zip(mentions, scenes)], scenes),
    }
