"""Golden values of tools/statistics.h.

    python3 tests/golden/make_statistics.py        (numpy, scipy)

statistics/cases.json: signed-rank tests by scipy's exact distribution, or, where differences are equal or zero, by all
2^n signs counted here; equivalence from scipy's one-sided tests; Holm's correction written out; slopes, Pearson and
Spearman of scipy; power from 20,000 simulated experiments; intervals: where scipy's test of what is left stays above .05. tests/test_statistics.c reads it."""
import itertools, json, os
import numpy as np
from scipy import stats

HERE = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(7)


def counted(d):
    """p greater, less, two-sided: every assignment of signs to the ranks that there are."""
    d = np.array([x for x in d if x != 0])
    ranks = stats.rankdata(abs(d))
    w = ranks[d > 0].sum()
    sums = np.array([np.dot(s, ranks) for s in itertools.product([0, 1], repeat=len(d))]) if len(d) else np.array([0.0])
    greater, less = (sums >= w).mean(), (sums <= w).mean()
    return float(w), float(greater), float(less), float(min(1, 2 * min(greater, less)))


def exact(d):
    p = [float(stats.wilcoxon(d, alternative=a, method="exact").pvalue) for a in ("greater", "less", "two-sided")]
    w = stats.rankdata(abs(d))[d > 0].sum()
    return float(w), *p


def holm(p):
    order, out, before = np.argsort(p), np.empty(len(p)), 0.0
    for k, i in enumerate(order):
        before = min(1.0, max(before, (len(p) - k) * p[i]))
        out[i] = before
    return [float(x) for x in out]


def test(d, how):
    w, greater, less, two = how(np.asarray(d))
    return {"d": [float(x) for x in d], "w": w, "greater": greater, "less": less, "two_sided": two}


def equivalence(n, mean, margin):
    d = rng.normal(mean, 1, n)
    p = max(stats.wilcoxon(d + margin, alternative="greater", method="exact").pvalue,
            stats.wilcoxon(d - margin, alternative="less", method="exact").pvalue)
    return {"d": d.tolist(), "margin": margin, "p": float(p)}


def pairs(n, ties):
    x, y = rng.normal(0, 1, n), rng.normal(0, 1, n)
    if ties: x, y = np.round(x), np.round(y + x)
    return {"x": x.tolist(), "y": y.tolist(), "slope": float(stats.linregress(x, y).slope),
            "pearson": float(stats.pearsonr(x, y).statistic), "spearman": float(stats.spearmanr(x, y).statistic)}


def power(n, mean, sd, alpha, margin):
    d = rng.normal(mean, sd, (20000, n))
    p = lambda x, a: stats.wilcoxon(x, alternative=a, method="exact", axis=1).pvalue
    found = np.maximum(p(d + margin, "greater"), p(d - margin, "less")) < alpha if margin else 2 * p(d, "greater") < alpha
    return {"n": n, "mean": mean, "sd": sd, "alpha": alpha, "margin": margin, "power": float(found.mean())}


def interval(d):
    """Between two neighbouring means of pairs p does not change: one trial in each gap."""
    ends = np.sort([(d[i] + d[j]) / 2 for i in range(len(d)) for j in range(i, len(d))])
    kept = [k for k in range(len(ends) - 1) if stats.wilcoxon(d - (ends[k] + ends[k + 1]) / 2, method="exact").pvalue > .05]
    return {"d": d.tolist(), "low": float(ends[kept[0]]), "high": float(ends[kept[-1] + 1])}


cases = {
    "signed_rank": [test(rng.normal(m, 1, n), exact) for n, m in ((3, 1), (5, .5), (8, .8), (8, -2), (15, .3), (15, 1), (30, .2), (45, .4))]
    + [test(d, counted) for d in ([1, 2, 3, 4, 5, 6, 7, 8], [1, 1, -1, 2, 2, 0, 3], [.5, -.5, .5, -.5], [0, 0, 0], [2, 2, 2, 2, 2, 2, -1],
                                  np.round(rng.normal(.5, 2, 12)).tolist())],
    "equivalence": [equivalence(n, m, margin) for n, m, margin in ((8, 0, 1.5), (15, .1, 1), (15, 1, 1), (12, 0, .3))],
    "holm": [{"p": p, "adjusted": holm(np.array(p))} for p in ([.01, .04, .03, .005], [.5, .5, .01], rng.uniform(0, .1, 12).tolist(), [.2])],
    "pairs": [pairs(6, False), pairs(15, True), pairs(120, False)],
    "power": [power(8, 1.5, 1, .05, 0), power(15, .8, 1, .05, 0), power(15, .5, 2, .01, 0), power(15, 0, 1, .05, .8), power(8, 0, 1, .05, 1)],
    "interval": [interval(rng.normal(1, 1, n)) for n in (6, 7, 8, 15, 30)],
}
with open(os.path.join(HERE, "statistics", "cases.json"), "w") as f:
    json.dump(cases, f, indent=0)
