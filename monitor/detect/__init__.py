"""Find trouble in step records. Pure: records in, events out; no clock, no I/O, no torch.

>>> from monitor.detect import DetectorSet, default_detectors
>>> detectors = DetectorSet(default_detectors())
>>> [event.kind for step in steps for event in detectors.update(step)]
['spike', 'spike']

What counts as trouble, and how well it is told from noise: docs/detection.md.
"""

from monitor.detect._bins import BinSettings
from monitor.detect._clipping import ClippingDetector, ClippingSettings
from monitor.detect._detector import Detector
from monitor.detect._divergence import DivergenceDetector, DivergenceSettings
from monitor.detect._gradients import GradientExplosionDetector, GradientSettings, GradientVanishingDetector
from monitor.detect._level import CusumSettings, LevelSettings
from monitor.detect._loss import LossRise, LossSettings
from monitor.detect._lost_ranks import LostRanks
from monitor.detect._maxima import MaximaSettings
from monitor.detect._nonfinite import NonfiniteDetector, NonfiniteMetricDetector, NonfiniteSettings
from monitor.detect._outlier import OutlierDetector
from monitor.detect._overfit import OverfitDetector, OverfitSettings
from monitor.detect._plateau import PlateauDetector, PlateauSettings
from monitor.detect._rise import RiseSettings
from monitor.detect._set import DetectorSet, default_detectors, rl_detectors
from monitor.detect._signal import SignalSettings
from monitor.detect._slowdown import SlowdownDetector, SlowdownSettings
from monitor.detect._spike import SpikeDetector
from monitor.detect._stall import StallDetector, StallSettings
from monitor.detect._stragglers import Stragglers
from monitor.detect._stuck import StuckDetector, StuckSettings

__all__ = [
    "BinSettings",
    "ClippingDetector",
    "ClippingSettings",
    "CusumSettings",
    "Detector",
    "DetectorSet",
    "DivergenceDetector",
    "DivergenceSettings",
    "GradientExplosionDetector",
    "GradientSettings",
    "GradientVanishingDetector",
    "LevelSettings",
    "LossRise",
    "LossSettings",
    "LostRanks",
    "MaximaSettings",
    "NonfiniteDetector",
    "NonfiniteMetricDetector",
    "NonfiniteSettings",
    "OutlierDetector",
    "OverfitDetector",
    "OverfitSettings",
    "PlateauDetector",
    "PlateauSettings",
    "RiseSettings",
    "SignalSettings",
    "SlowdownDetector",
    "SlowdownSettings",
    "SpikeDetector",
    "StallDetector",
    "StallSettings",
    "Stragglers",
    "StuckDetector",
    "StuckSettings",
    "default_detectors",
    "rl_detectors",
]
