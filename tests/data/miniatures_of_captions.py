"""Published lists of captioned videos, in miniature."""

import json
import pickle

from tests.data.miniature import SAY, Miniature, lines

MSRVTT = {
    "info": {"year": "2016"},
    "videos": [
        {"id": n, "video_id": f"video{n}", "category": 9, "url": "https://x/y", "start time": 1.5, "end time": 9.0,
         "split": split}
        for n, split in enumerate(("train", "validate", "test"))
    ],
    "sentences": [{"sen_id": n, "video_id": f"video{n % 3}", "caption": f"{SAY[n % 3]} {n}"} for n in range(6)],
}  # fmt: skip
MSRVTT_FILES = tuple(f"TrainValVideo/video{n}.mp4" for n in range(3))
JSFUSION = f'key,vid_key,video_id,sentence\nret0,msr9,video1,{SAY[0]}\nret1,msr7,video2,"{SAY[1]}"\n'
FROZEN = {
    "info": {}, "images": [{"id": "video0"}], "annotations": [
        {"image_id": f"video{n}", "caption": SAY[n], "id": n} for n in range(3)
    ],
}  # fmt: skip
SPLITS = ("train", "val", "test")
MSVD_CLIPS = ("abc_1_4", "d-e_10_20", "zzz_0_3")
MSVD_PICKLE = pickle.dumps({clip: [SAY[n].split(), ["again", str(n)]] for n, clip in enumerate(MSVD_CLIPS)}, protocol=2)
DIDEMO = [
    {"annotation_id": n, "description": SAY[n], "times": [[0, 0], [1, 2], [1, 2], [1, 3]], "num_segments": 6,
     "video": "1@N02_9_a.mov" if n < 2 else "2@N02_8_b.avi", "reference_description": "", "dl_link": ""}
    for n in range(3)
]  # fmt: skip
ACTIVITYNET = {
    "v_a-b": {"duration": 9.5, "timestamps": [[0, 4.5], [4.5, 9.5]], "sentences": [f" {SAY[0]}.", f"{SAY[2]} "]},
    "v_c": {"duration": 3, "timestamps": [[2, 2]], "sentences": [SAY[1]]},
}
YOUCOOK2 = {
    "database": {
        "GLd3aX16zBg": {
            "duration": 241.62, "subset": "training", "recipe_type": "113", "video_url": "https://x/y",
            "annotations": [{"segment": [90, 102], "id": 0, "sentence": SAY[0]}],
        },
        "xHr8X2Wpmno": {
            "duration": 9.0, "subset": "validation", "recipe_type": "2", "video_url": "https://x/y",
            "annotations": [{"segment": [4, 8], "id": 0, "sentence": SAY[2]}],
        },
    }
}  # fmt: skip
LSMDC = "".join(
    f"0001_Film_00.00.0{n}.000-00.00.0{n}.900\t00.00.0{n}\t00.00.09\t00.00.0{n}.00\t00.00.09\tSOMEONE's \"{SAY[n]}\n"
    for n in range(2)
)
INTERNVID = [
    {"YoutubeID": "a_b-c", "Start_timestamp": f"00:0{n}:02.500", "End_timestamp": f"00:0{n}:12.000", "Caption": SAY[n],
     "Aesthetic_Score": 4.5, "UMT_Score": 0.4}
    for n in range(2)
]  # fmt: skip
WEBVID = "videoid,contentUrl,duration,page_dir,name\n" + "".join(
    f'{100 + n},https://x/{n}.mp4,PT00H00M17S,000001_000050,"{SAY[n]}"\n' for n in range(2)
)
CC3M_URLS = ("http://x/0.jpg", "https://x/1.jpg?w=2")  # CRC-32: 3201020692 and 1500174011
CAPTIONED: dict[str, list[Miniature]] = {
    "msrvtt": [
        Miniature(
            "captions", "MSRVTT_data.json", json.dumps(MSRVTT), MSRVTT_FILES,
            ((MSRVTT_FILES[0], (f"{SAY[0]} 0", f"{SAY[0]} 3"), None, None),),
            (f'"caption": "{SAY[0]} 0"', '"caption": 7'),
            ", sentences, entry 1: field 'caption': expected text, got 7", more={"split": "train"},
        ),
        Miniature(
            "captions", "MSRVTT_data.json", json.dumps(MSRVTT, indent=1), MSRVTT_FILES,
            tuple((MSRVTT_FILES[n], (f"{SAY[n]} {n}", f"{SAY[n]} {n + 3}"), None, None) for n in (0, 1)),
            ('"video_id": "video2",\n   "caption"', '"video_id": "video9",\n   "caption"'),
            ", sentences, entry 3: field 'video_id': 'video9' is not among the list's videos", more={"split": "7k"},
        ),
        Miniature(
            "captions", "MSRVTT_data.json", json.dumps(MSRVTT), MSRVTT_FILES,
            ((MSRVTT_FILES[2], (f"{SAY[2]} 2", f"{SAY[2]} 5"), None, None),),
            ('"split": "test"', '"split": 3'), ", videos, entry 3: field 'split': expected non-empty text, got 3",
            beside={"MSRVTT_train.9k.csv": "video_id\nvideo2\n"}, more={"split": "9k"},
        ),
        Miniature(
            "captions", "MSRVTT_data.json", json.dumps(MSRVTT), MSRVTT_FILES,
            ((MSRVTT_FILES[1], (SAY[0],), None, None), (MSRVTT_FILES[2], (SAY[1],), None, None)),
            (f'video2,"{SAY[1]}"', f',"{SAY[1]}"'), ", line 3: field 'video_id': expected non-empty text, got ''",
            beside={"MSRVTT_JSFUSION_test.csv": JSFUSION}, more={"split": "1k-A"}, damages="MSRVTT_JSFUSION_test.csv",
        ),
    ],
    "msrvtt_jsfusion": [
        Miniature(
            "captions", "MSRVTT_JSFUSION_test.csv", JSFUSION, MSRVTT_FILES,
            ((MSRVTT_FILES[1], (SAY[0],), None, None), (MSRVTT_FILES[2], (SAY[1],), None, None)),
            (f'"{SAY[1]}"', SAY[1]), ", line 3: field 'sentence': is not the last, expected 4 columns, got 5",
        )
    ],
    "msrvtt_ids": [
        Miniature(
            "captions", "MSRVTT_train.9k.csv", "video_id\nvideo1\n", MSRVTT_FILES,
            ((MSRVTT_FILES[1], (f"{SAY[1]} 1", f"{SAY[1]} 4"), None, None),),
            ("video1", "video77"), ", line 2: field 'video_id': ", beside={"MSRVTT_data.json": json.dumps(MSRVTT)},
        )
    ],
    "msrvtt_frozen": [
        Miniature(
            "captions", "annotation/MSR_VTT.json", json.dumps(FROZEN),
            tuple(f"annotation/all/video{n}.mp4" for n in range(3)),
            (("annotation/all/video1.mp4", (SAY[1],), None, None),),
            (f'"caption": "{SAY[1]}"', '"caption": {}'),
            ", annotations, entry 2: field 'caption': expected text, got {}",
            beside={"high-quality/structured-symlinks/train_list_jsfusion.txt": "video1\n"},
            more={"split": "train_jsfusion"},
        )
    ],
    "msvd": [
        Miniature(
            "captions", "raw-captions.pkl", MSVD_PICKLE, tuple(f"YouTubeClips/{clip}.avi" for clip in MSVD_CLIPS),
            (("YouTubeClips/abc_1_4.avi", (SAY[0], "again 0"), None, None),),
            (b"X\x01\x00\x00\x00a", b"K\x07"),
            ", 'abc_1_4': field 'words': expected a list of texts, got [7, 'red', 'ball', 'moves', 'up']",
            beside={f"{name}_list.txt": f"{clip}\n" for name, clip in zip(SPLITS, MSVD_CLIPS, strict=True)},
            more={"split": "train"},
        )
    ],
    "msvd_ids": [
        Miniature(
            "captions", "val_list.txt", "d-e_10_20\n", ("YouTubeClips/d-e_10_20.avi",),
            (("YouTubeClips/d-e_10_20.avi", (SAY[1], "again 1"), None, None),),
            ("d-e_10_20", "d-e"), ", line 1: field 'video': ", beside={"raw-captions.pkl": MSVD_PICKLE},
        )
    ],
    "didemo": [
        Miniature(
            "captions", "train_data.json", json.dumps(DIDEMO), ("v/1@N02_9_a.mp4", "v/2@N02_8_b.avi"),
            (("v/1@N02_9_a.mp4", (f"{SAY[0]} {SAY[1]}",), None, None), ("v/2@N02_8_b.avi", (SAY[2],), None, None)),
            ('"video": "2@N02_8_b.avi"', '"video": 2'),
            ", line 1, entry 3: field 'video': expected non-empty text, got 2",
        )
    ],
    "didemo_moments": [
        Miniature(
            "captions", "train_data.json", json.dumps(DIDEMO[:1]), ("v/1@N02_9_a.mp4",),
            (("v/1@N02_9_a.mp4", (SAY[0],), 5.0, 15.0),),
            ("[[0, 0]", "[[0]"), ", line 1, entry 1: field 'times': expected a list of [start, end]",
            more={"format": "didemo_moments"},
        )
    ],
    "activitynet": [
        Miniature(
            "captions", "val_1.json", json.dumps(ACTIVITYNET), ("v/v_a-b.mp4", "v/v_c.mkv"),
            (("v/v_a-b.mp4", (f"{SAY[0]}. {SAY[2]}",), None, None), ("v/v_c.mkv", (SAY[1],), None, None)),
            (f'["{SAY[1]}"]', f'"{SAY[1]}"'), ", 'v_c': field 'sentences': expected a list of texts",
        )
    ],
    "activitynet_moments": [
        Miniature(
            "captions", "val_1.json", json.dumps(ACTIVITYNET), ("v/v_a-b.mp4", "v/v_c.mkv"),
            (("v/v_a-b.mp4", (f"{SAY[0]}.",), None, 4.5), ("v/v_a-b.mp4", (SAY[2],), 4.5, 9.5)),
            ("[4.5, 9.5]]", "4.5]"), ", 'v_a-b': field 'timestamps': expected a list of [start, end]",
            more={"format": "activitynet_moments"},
        )
    ],
    "youcook2": [
        Miniature(
            "captions", "youcookii_annotations_trainval.json", json.dumps(YOUCOOK2), ("training/113/GLd3aX16zBg.webm",),
            (("training/113/GLd3aX16zBg.webm", (SAY[0],), 90.0, 102.0),),
            ("[90, 102]", "[90]"), ", 'GLd3aX16zBg': field 'segment': expected a list of [start, end]",
            more={"split": "train"},
        )
    ],
    "howto100m": [
        Miniature(
            "captions", "caption.json",
            json.dumps({"a-b": {"start": [0.5, 2], "end": [2, 4.5], "text": list(SAY[:2])}}),
            ("v/a-b.mp4",), (("v/a-b.mp4", (SAY[0],), 0.5, 2.0), ("v/a-b.mp4", (SAY[1],), 2.0, 4.5)),
            ('"end": [2, 4.5]', '"end": [2]'),
            ", 'a-b': field 'end': expected as many numbers as in 'start', which are 2, got 1",
        )
    ],
    "internvid": [
        Miniature(
            "captions", "10M.jsonl", lines(*INTERNVID), ("v/a_b-c_00:00:02.500_00:00:12.000.mp4", "v/a_b-c.mp4"),
            (("v/a_b-c_00:00:02.500_00:00:12.000.mp4", (SAY[0],), None, None), ("v/a_b-c.mp4", (SAY[1],), 62.5, 72.0)),
            ('"00:01:12.000"', '"72 s"'), ", line 2: field 'End_timestamp': expected a time such as 00:01:02.500",
        )
    ],
    "vatex": [
        Miniature(
            "captions", "vatex_training_v1.0.json",
            json.dumps([{"videoID": f"a_b-{n}_000001_000011", "enCap": [SAY[n], ""], "chCap": []} for n in range(2)]),
            ("v/a_b-0_000001_000011.mp4", "v/a_b-1.mp4"),
            (("v/a_b-0_000001_000011.mp4", (SAY[0],), None, None), ("v/a_b-1.mp4", (SAY[1],), 1.0, 11.0)),
            (f'["{SAY[1]}", ""]', "{}"), ", line 1, entry 2: field 'enCap': expected text, got {}",
        )
    ],
    "lsmdc": [
        Miniature(
            "captions", "LSMDC16_annos_training.csv", LSMDC,
            tuple(f"0001_Film/0001_Film_00.00.0{n}.000-00.00.0{n}.900.avi" for n in range(2)),
            tuple((f"0001_Film/0001_Film_00.00.0{n}.000-00.00.0{n}.900.avi", (f"SOMEONE's \"{SAY[n]}",), None, None)
                  for n in range(2)),
            ("\tSOMEONE's \"" + SAY[1], ""), ", line 2: field 'sentence': is missing, expected 6 columns",
        )
    ],
    "webvid": [
        Miniature(
            "captions", "results_2M_train.csv", WEBVID, ("videos/000001_000050/100.mp4", "flat/101.mp4"),
            (("videos/000001_000050/100.mp4", (SAY[0],), None, None), ("flat/101.mp4", (SAY[1],), None, None)),
            ("101,https", ",https"), ", line 3: field 'videoid': expected non-empty text, got ''",
        )
    ],
    "cc3m": [
        Miniature(
            "captions", "Train_GCC-training.tsv", "".join(f'{SAY[n]} "x\t{url}\n' for n, url in enumerate(CC3M_URLS)),
            ("training/3201020692", "training/1500174011.png"),
            (("training/3201020692", (f'{SAY[0]} "x',), None, None),
             ("training/1500174011.png", (f'{SAY[1]} "x',), None, None)),
            (f"\t{CC3M_URLS[1]}", ""), ", line 2: field 'url': is missing, expected 2 columns, got 1",
        )
    ],
    "clipbert": [
        Miniature(
            "captions", "train.jsonl", lines({"clip_name": "video7", "caption": SAY[0]}), ("v/video7.mp4",),
            (("v/video7.mp4", (SAY[0],), None, None),),
            (json.dumps(SAY[0]), "1"), ", line 1: field 'caption': expected text, got 1",
        )
    ],
}  # fmt: skip
