"""How do Dion2, Dion3 and NorMuon compare with Muon if each is tuned as long as Muon?"""

from experiments.entries import Experiment, Setting, crossed
from experiments.sets.contenders import DION2, DION3, MUON, NORMUON
from experiments.sets.settings import BATCH_32K

_MOMENTA = [Setting(name=f"momentum {momentum}", momentum=momentum) for momentum in (0.7, 0.8, 0.9, 0.95)]

SET = Experiment(
    name="family",
    question="How do Dion2, Dion3 and NorMuon compare with Muon, each tuned as long?",
    entries=crossed((MUON, NORMUON, DION2, DION3), (*_MOMENTA, BATCH_32K)),
    published=(
        "Dion3's authors: 2.162 for Dion3 at 1/4 and 2.189 for NorMuon, 14B; "
        "Dion2's authors: 2.635 for Dion2 at 1/4 and 2.623 for Muon, 1B."
    ),
)
