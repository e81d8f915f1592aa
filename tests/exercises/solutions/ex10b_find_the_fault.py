def breaks_says_no():
    return "snow"                        # contains the letters of "no"


def breaks_pair_accuracy():
    return [1, 3, 2]                     # only the last pair, (3, 2), is counted: 1 instead of 1/3


def breaks_hallucination():
    return [[6, 2]]                      # the mean is 4, so the whole dialogue passes: 0 instead of 1/2


def breaks_read_ratings():
    return ["Rating: 5", "no idea"]      # the 5 is used once more
