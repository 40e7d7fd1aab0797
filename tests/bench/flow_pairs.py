"""The pairs of frames that flow methods are compared on: fifty-six of real videos, by name; or drawn ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocess.flow import gray_of
from preprocess.video import opened, stored_frames

SHORT_SIDE = 256  # pixels, as records are stored

NAMED = (  # a video of UCF101, HMDB51 or JHMDB, and the frame that the pair begins with
    ("v_Archery_g01_c06", 36),
    ("v_Archery_g07_c04", 25),
    ("v_Archery_g13_c02", 49),
    ("v_Archery_g19_c01", 43),
    ("v_Archery_g25_c07", 44),
    ("v_BasketballDunk_g06_c01", 26),
    ("v_BasketballDunk_g12_c01", 25),
    ("v_BasketballDunk_g18_c04", 25),
    ("v_BasketballDunk_g24_c03", 26),
    ("v_HorseRace_g05_c04", 71),
    ("v_HorseRace_g11_c03", 84),
    ("v_HorseRace_g17_c01", 72),
    ("v_HorseRace_g23_c02", 65),
    ("v_PlayingPiano_g04_c02", 68),
    ("v_PlayingPiano_g10_c01", 67),
    ("v_PlayingPiano_g16_c06", 70),
    ("v_PlayingPiano_g22_c03", 71),
    ("v_PlayingViolin_g03_c02", 60),
    ("v_PlayingViolin_g09_c03", 58),
    ("v_PlayingViolin_g15_c01", 47),
    ("v_PlayingViolin_g21_c02", 58),
    ("v_Surfing_g02_c02", 31),
    ("v_Surfing_g08_c04", 79),
    ("v_Surfing_g14_c03", 50),
    ("v_Surfing_g20_c03", 54),
    ("v_ApplyEyeMakeup_g01_c01", 54),
    ("v_BaseballPitch_g01_c01", 35),
    ("v_Kayaking_g12_c03", 123),
    ("v_Rowing_g14_c04", 116),
    ("v_SalsaSpin_g12_c03", 66),
    ("v_SoccerJuggling_g23_c01", 80),
    ("v_SoccerJuggling_g24_c01", 83),
    ("hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6", 27),
    ("KOREAN_TEA_CEREMONY_-_Simple_Demo_pour_u_nm_np1_fr_med_0", 143),
    ("RATRACE_wave_f_nm_np1_fr_goo_37", 24),
    ("SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0", 24),
    ("TrumanShow_wave_f_nm_np1_fr_med_26", 24),
    ("April_09_brush_hair_u_nm_np1_ba_goo_0", 20),
    ("Ella_brushing_her_amazing_long_hair_brush_hair_u_cm_np1_ba_goo_0", 20),
    ("Empire_State_Building_Run-Up_climb_stairs_f_cm_np1_ba_med_3", 20),
    ("Outdoor_Agility_Training_-_Outdoor_Stair_Run_Drill_for_Agility_climb_stairs_f_cm_np1_ba_med_0", 18),
    ("Cobra_Golf_-_Camilo_Villegas_golf_f_cm_np1_ri_goo_0", 20),
    ("Jeff_Ritter_-_The_Transition_golf_f_nm_np1_ri_med_0", 20),
    ("Bartender_of_America_Bartending_School_pour_u_cm_np1_fr_med_2", 15),
    ("How_To_Pour_Ice_Tea_pour_u_nm_np1_fr_med_2", 15),
    ("Rum_Mixed_Drinks-_Part_4_-_How_to_Make_the_Cuba_Libre_Mixed_Drink_pour_u_nm_np1_fr_goo_0", 20),
    ("20_good_form_pullups_pullup_f_nm_np1_ri_goo_1", 20),
    ("Perfect_Pull_Up_-_How_To_Do_Pull_Ups_pullup_u_cm_np1_fr_goo_0", 20),
    ("pull_ups_pullup_u_nm_np1_fr_med_5", 20),
    ("ArcheryFastShooting_shoot_bow_u_nm_np1_fr_med_20", 20),
    ("Shootingarecurve_shoot_bow_u_nm_np1_fr_med_1", 20),
    ("BaseballSwingAnalysis_swing_baseball_u_nm_np1_ba_med_4", 15),
    ("hittingofftee2_swing_baseball_f_nm_np1_fr_med_4", 20),
    ("practicingmybaseballswing2009_swing_baseball_u_cm_np1_fr_med_0", 20),
    ("Chris_Benoit_waving_goodbye_wave_u_nm_np1_fr_med_1", 15),
    ("prideandprejudice1_wave_f_nm_np1_ri_med_14", 10),
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pair:
    """Two frames, one after the other, of one video."""

    name: str
    first: NDArray[np.uint8]  # (H, W, 3), RGB
    second: NDArray[np.uint8]

    @property
    def gray(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Both as flow sees them, (H, W)."""
        return gray_of(self.first), gray_of(self.second)


def named_pairs(folder: Path, count: int, progress: Callable[[str], None]) -> list[Pair]:
    """The first `count` of the named pairs, or as many spread evenly, from the videos below a folder.

    Raises SystemExit where videos are missing: fewer or other pairs would be another comparison.
    """
    videos = {path.stem: path for path in folder.rglob("*.avi")}
    if missing := [name for name, _ in NAMED if name not in videos]:
        raise SystemExit(
            f"--data {folder}: {len(missing)} of the {len(NAMED)} videos are not below it, {missing[0]} among them;"
            " expected those of UCF101, HMDB51 and JHMDB that tests/bench/flow_pairs.py names. Without them: --drawn"
        )
    chosen = [NAMED[i * len(NAMED) // count] for i in range(count)] if count < len(NAMED) else NAMED
    pairs = []
    for number, (name, frame) in enumerate(chosen, 1):
        progress(f"decoding, {number} of {len(chosen)}: {name}")
        first, second = frames(videos[name], frame, 2)
        pairs.append(Pair(name=f"{name} {frame}", first=first, second=second))
    return pairs


def frames(video: Path, start: int, count: int) -> list[NDArray[np.uint8]]:
    """Frames of a video as they are stored, from `start` on."""
    with opened(video) as film:
        return list(islice(stored_frames(film, SHORT_SIDE), start, start + count))


def consecutive(folder: Path, name: str, count: int) -> Iterator[Pair]:
    """Up to `count` pairs of one video, one after the other."""
    [path] = [path for path in folder.rglob("*.avi") if path.stem == name]
    shown = frames(path, 0, count + 1)
    for i in range(len(shown) - 1):
        yield Pair(name=f"{name} {i}", first=shown[i], second=shown[i + 1])
