"""What a comparison may honestly say of arms that were trained on the same seeds.

gaps: figures of two arms' answers, image by image. spread: how far seeds differ. differences: the
mean difference of two arms, with everything that is said of it. several: Holm's levels. equality,
power: what is small enough, and what would have been found (roots: by bisection). pairs: two
networks, one seed. looks: looking more than once. verdicts: the words.
"""
