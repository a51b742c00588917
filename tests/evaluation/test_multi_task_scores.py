"""Multi-task scores against the numbers that the papers print."""

import pytest
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionMetrics

from perception.evaluation import acc_mtl, delta_m, delta_mtl

# AMTL, Table 1: mIoU, delta_1, rmse, mean, median, 11.25, Acc_MTL, Delta_MTL in percent.
NYU = {
    "single": (0.4437, 0.8087, 0.5814, 19.3462, 13.2045, 0.4553, 0.3989, 0.0),
    "uniform": (0.4446, 0.8091, 0.5776, 22.8531, 17.7271, 0.3322, 0.3666, -8.64),
    "rlw": (0.4447, 0.8082, 0.5759, 22.8410, 17.6180, 0.3350, 0.3673, -8.43),
    "dwa": (0.4465, 0.8093, 0.5751, 22.7934, 17.6902, 0.3330, 0.3676, -8.34),
    "gls": (0.4321, 0.8221, 0.5665, 20.7032, 15.0512, 0.3982, 0.3837, -3.90),
    "mgda": (0.2511, 0.7636, 0.6266, 19.2796, 13.1962, 0.4553, 0.3229, -16.65),
    "pcgrad": (0.4435, 0.8017, 0.5825, 24.2444, 19.3005, 0.3038, 0.3558, -11.83),
    "cagrad": (0.4448, 0.8001, 0.5854, 24.2759, 19.3395, 0.3033, 0.3556, -11.91),
    "gradnorm": (0.4458, 0.7888, 0.5928, 22.3488, 16.9259, 0.3524, 0.3690, -7.95),
    "imtl_g": (0.4361, 0.8021, 0.5788, 20.5248, 14.6814, 0.4097, 0.3846, -3.67),
    "imtl": (0.4162, 0.7876, 0.5930, 20.8134, 14.8333, 0.4064, 0.3746, -6.24),
    "dtp": (0.4458, 0.7648, 0.6140, 22.2556, 16.7507, 0.3568, 0.3660, -8.74),
    "amtl": (0.4377, 0.8205, 0.5667, 20.7974, 15.1003, 0.3969, 0.3847, -3.64),
}
# AMTL, Table 7: mAP, mIoU, delta_1, rmse, Acc_MTL, Delta_MTL in percent.
VOC = {
    "single": (0.5795, 0.7895, 0.8882, 0.4393, 0.8665, 0.0),
    "uniform": (0.5922, 0.7823, 0.8731, 0.4498, 0.8642, -0.25),
    "imtl": (0.5891, 0.8005, 0.8908, 0.4392, 0.8757, 1.07),
    "amtl": (0.5870, 0.8025, 0.8903, 0.4300, 0.8784, 1.37),
}
# MCLGS, Table 3: mIoU, Pix Acc, Abs Err, Rel Err, Mean, Median, 11.25, 22.5, 30, Delta m in percent.
MCLGS = {
    "single": (39.33, 64.55, 0.5785, 0.2339, 26.12, 20.44, 28.04, 54.56, 66.84, 0.0),
    "mtan": (40.88, 66.14, 0.5489, 0.2290, 27.83, 23.23, 23.63, 48.93, 62.15, 1.29),
    "mgda": (20.52, 53.16, 0.6635, 0.2532, 26.00, 20.45, 28.07, 54.58, 66.96, 14.69),
    "mclgs": (40.20, 65.63, 0.5429, 0.2174, 26.03, 21.11, 26.68, 53.32, 66.26, -2.12),
    "cagrad+mclgs": (41.37, 66.47, 0.5513, 0.2230, 25.50, 20.22, 28.26, 55.16, 67.75, -3.37),
}
# MCLGS, Table 4: mAP, mIoU, Delta m in percent.
BDD = {
    "single": (25.37, 49.66, 0.0),
    "baseline": (26.16, 51.43, -3.33),
    "mgda": (15.33, 46.61, 22.85),
    "mclgs": (26.31, 51.82, -4.03),
}


def nyu(row):
    miou, delta, rmse, mean, median, within, *_ = row
    return {
        "seg": {"mIoU": miou},
        "depth": {"delta_1": delta, "rmse": rmse},
        "normal": {"mean": mean, "median": median, "11.25": within},
    }


def voc(row):
    return {"det": {"mAP": row[0]}, "seg": {"mIoU": row[1]}, "depth": {"delta_1": row[2], "rmse": row[3]}}


def mclgs(row):
    names = ("mIoU", "acc", "abs", "rel", "mean", "median", "11.25", "22.5", "30")
    values = dict(zip(names, row, strict=False))
    groups = {"seg": names[:2], "depth": names[2:4], "normal": names[4:]}
    return {task: {name: values[name] for name in group} for task, group in groups.items()}


@pytest.mark.parametrize("method", NYU)
def test_amtl_table_1(method):
    lower = ("rmse", "mean", "median")
    assert acc_mtl(nyu(NYU[method]), lower_is_better=lower) == pytest.approx(NYU[method][6], abs=1.01e-4)
    change = delta_mtl(nyu(NYU[method]), nyu(NYU["single"]), lower_is_better=lower)
    assert 100 * change == pytest.approx(NYU[method][7], abs=0.02)


@pytest.mark.parametrize("method", VOC)
def test_amtl_table_7(method):
    assert acc_mtl(voc(VOC[method]), lower_is_better=["rmse"]) == pytest.approx(VOC[method][4], abs=1.01e-4)
    change = delta_mtl(voc(VOC[method]), voc(VOC["single"]), lower_is_better=["rmse"])
    assert 100 * change == pytest.approx(VOC[method][5], abs=0.02)


@pytest.mark.parametrize("method", MCLGS)
def test_mclgs_table_3_is_a_drop(method):
    lower = ("abs", "rel", "mean", "median")
    change = delta_m(mclgs(MCLGS[method]), mclgs(MCLGS["single"]), lower_is_better=lower)
    assert 100 * change == pytest.approx(
        MCLGS[method][-1], abs=0.15
    )  # printed over seeds, not over printed means
    gain = delta_m(mclgs(MCLGS[method]), mclgs(MCLGS["single"]), lower_is_better=lower, convention="gain")
    assert gain == -change


@pytest.mark.parametrize("method", BDD)
def test_mclgs_table_4_is_a_drop(method):
    def scores(row):
        return {"det": {"mAP": row[0]}, "seg": {"mIoU": row[1]}}

    change = delta_m(scores(BDD[method]), scores(BDD["single"]))
    assert 100 * change == pytest.approx(BDD[method][-1], abs=0.03)


def test_averages_differ_where_tasks_have_different_numbers_of_metrics():
    scores = {"det": {"AP": 2.0}, "depth": {"d1": 1.0, "d2": 1.0, "d3": 1.0}}
    base = {"det": {"AP": 1.0}, "depth": {"d1": 1.0, "d2": 1.0, "d3": 1.0}}
    assert delta_m(scores, base, convention="gain") == 0.5
    assert delta_m(scores, base, convention="gain", average="metrics") == 0.25


def test_a_score_of_0_makes_acc_mtl_0():
    assert acc_mtl({"det": {"AP": 0.0}, "seg": {"mIoU": 0.3}}) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delta_m({"det": {"AP": 1.0}}, {"det": {"AP": 0.0}}), "baseline's AP of task 'det' is 0"),
        (lambda: delta_m({"det": {"AP": 1.0}}, {"seg": {"mIoU": 1.0}}), "the same tasks and metrics"),
        (lambda: delta_m({"det": {"AP": 1.0}}, {"det": {"AP": 1.0}, "seg": {"a": 1.0}}), "the same tasks"),
        (lambda: delta_m({"det": {"AP": 1.0}}, {"det": {"AP": 1.0}}, convention="up"), "'drop' or 'gain'"),
        (lambda: acc_mtl({"d": {"rmse": 1.0}}, lower_is_better=["rsme"]), "Did you mean 'rmse'"),
        (lambda: acc_mtl({"d": {"rmse": 0.0}}, lower_is_better=["rmse"]), "rmse of task 'd' is 0.0"),
        (lambda: acc_mtl({"d": {"AP": float("nan")}}), "AP of task 'd' is nan"),
        (lambda: acc_mtl({}), "at least one metric"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("mean_ap", "errors", "printed"),
    [
        (0.186, (0.895, 0.300, 0.704, 0.648, 0.215), 0.3168),
        (0.195, (0.898, 0.297, 0.698, 0.579, 0.212), 0.3291),
        (0.207, (0.904, 0.297, 0.667, 0.549, 0.213), 0.3405),
        (0.203, (0.891, 0.299, 0.690, 0.544, 0.203), 0.3388),
        (0.209, (0.901, 0.302, 0.635, 0.559, 0.214), 0.3434),
    ],
)
def test_nds_of_wpcgrads_table_2(mean_ap, errors, printed):
    """wPCGrad's Eq. 2 is what the devkit, by which we score, makes of that table's mAP and errors."""
    config = config_factory("detection_cvpr_2019")
    metrics = DetectionMetrics(config)
    for name in config.class_names:
        for distance in config.dist_ths:
            metrics.add_label_ap(name, distance, mean_ap)
        for metric, error in zip(TP_METRICS, errors, strict=True):
            metrics.add_label_tp(name, metric, error)
    assert metrics.nd_score == pytest.approx(printed, abs=5e-5)
