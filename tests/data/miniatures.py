"""Lists in miniature, by the name of their format."""

import json

from tests.data.miniature import SAY, Miniature, lines
from tests.data.miniatures_of_captions import CAPTIONED

SSV2 = [
    {"id": "78687", "label": "holding potato next to bottle", "template": "Holding [something] next to [something]",
     "placeholders": ["potato", "bottle"]},
    {"id": "42326", "label": "pushing pen left", "template": "Pushing [something] left", "placeholders": ["pen"]},
]  # fmt: skip
QA = [{"answer": "ball", "category_id": 14, "id": n, "question": "what moves?", "video_id": 6513 + n} for n in range(2)]
MSVD_QA = [{"answer": "dog", "id": n, "question": "what runs?", "video_id": 1300 + n} for n in range(2)]
ACTIVITYNET_Q = [{"video_name": "a-b", "question": "is it red", "question_id": f"v_a-b_{n}"} for n in range(2)]
ACTIVITYNET_A = [{"answer": ("yes", "no")[n], "type": 3, "question_id": f"v_a-b_{n}"} for n in range(2)]
NEXTQA = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
AVA = "".join(f"-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,{action},{person}\n" for action, person in ((80, 1), (9, 1)))
AVA_ACTIONS = 'item {\n  name: "walk"\n  id: 9\n}\nitem {\n  name: "watch (a person)"\n  id: 80\n}\n'
OWN = [{"video": f"{n}.mp4", "caption": SAY[n]} for n in range(2)]
QUESTION = {"video": "0.mp4", "question": "what moves?", "answer": "ball"}

MINIATURES: dict[str, list[Miniature]] = {
    **CAPTIONED,
    "jsonl": [
        Miniature(
            "captions", "list.jsonl", lines(*OWN), ("0.mp4", "1.mp4"),
            (("0.mp4", (SAY[0],), None, None), ("1.mp4", (SAY[1],), None, None)),
            ('"video": "1.mp4"', '"video": 7'), ", line 2: field 'video': expected non-empty text, got 7",
        ),
        Miniature(
            "captions", "list.jsonl", json.dumps([{**OWN[0], "start": 0.5, "end": "00:00:02"}], indent=1), ("0.mp4",),
            (("0.mp4", (SAY[0],), 0.5, 2.0),),
            ('"video": "0.mp4"', '"video": ""'), ", line 2, entry 1: field 'video': expected non-empty text, got ''",
        ),
        Miniature(
            "labels", "list.jsonl", lines({"video": "0.mp4", "labels": ["run", "sit"]}), ("0.mp4",),
            (("0.mp4", ("run", "sit"), None, None),),
            ('["run", "sit"]', '"run"'), ", line 1: field 'labels': expected a list of classes, got 'run'",
        ),
    ],
    "vindlu": [
        Miniature(
            "captions", "train.json", json.dumps([OWN[0], {"image": "a/1.jpg", "caption": [SAY[1], SAY[2]]}]),
            ("0.mp4", "a/1.jpg"), (("0.mp4", (SAY[0],), None, None), ("a/1.jpg", (SAY[1], SAY[2]), None, None)),
            (json.dumps(SAY[2]), "7"), ", line 1, entry 2: field 'caption': expected non-empty text, got 7",
        ),
        Miniature(
            "questions", "qa.json", json.dumps([{**QUESTION, "question_id": 3}], indent=2), ("0.mp4",),
            (("0.mp4", ("what moves?", "ball", ()), None, None),),
            ('"answer": "ball"', '"answer": 3'), ", line 2, entry 1: field 'answer': expected non-empty text, got 3",
        ),
    ],
    "huggingface": [
        Miniature(
            "captions", "metadata.jsonl", lines(*({"file_name": f"{n}.mp4", "text": SAY[n]} for n in range(2))),
            ("0.mp4", "1.mp4"), (("0.mp4", (SAY[0],), None, None), ("1.mp4", (SAY[1],), None, None)),
            ('"1.mp4"', "null"), ", line 2: field 'file_name': expected non-empty text, got None",
        ),
        Miniature(
            "label", "metadata.csv", "file_name,label\nb/0.mp4,run\nc/1.mp4,sit\n", ("b/0.mp4", "c/1.mp4"),
            (("b/0.mp4", "run", None, None), ("c/1.mp4", "sit", None, None)),
            ("c/1.mp4,sit", "c/1.mp4"), ", line 3: field 'label': is missing, expected 2 columns, got 1",
        ),
    ],
    "table": [
        Miniature(
            "captions", "list.csv", f'path,title,split\n0.mp4,"{SAY[1]}\nmore",train\n\n1.mp4,{SAY[0]},train\n',
            ("0.mp4", "1.mp4"),
            (("0.mp4", (f"{SAY[1]}\nmore",), None, None), ("1.mp4", (SAY[0],), None, None)),
            ("1.mp4,", ","), ", line 5: field 'path': expected non-empty text, got ''",
        ),
        Miniature(
            "captions", "list.tsv", "video\tstart\tend\tcaption\n0.mp4\t1.5\t3\tone\n0.mp4\t3\t00:01:00\ttwo\n",
            ("0.mp4",),
            (("0.mp4", ("one",), 1.5, 3.0), ("0.mp4", ("two",), 3.0, 60.0)),
            ("\t1.5\t", "\tsoon\t"), ", line 2: field 'start': expected seconds from 0 on",
        ),
        Miniature(
            "captions", "list.jsonl", lines({"video": "0.mp4", "text": SAY[0]}), ("0.mp4",),
            (("0.mp4", (SAY[0],), None, None),),
            (json.dumps(SAY[0]), "[7]"), ", line 1: field 'text': expected a list of texts, got [7]",
        ),
    ],
    "path_label": [
        Miniature(
            "label", "train.csv", "a/0.mp4 1\n\"with space/b, 1.mp4\",0\nc d.mp4 12\n",
            ("a/0.mp4", "with space/b, 1.mp4", "c d.mp4"),
            (("a/0.mp4", "1", None, None), ("with space/b, 1.mp4", "0", None, None), ("c d.mp4", "12", None, None)),
            ("c d.mp4 12", "c d.mp4 x"), ", line 3: field 'label': expected a whole number below 1000000",
        )
    ],
    "path_frames_label": [
        Miniature(
            "videos", "list.csv", "a/0.mp4 0 -1\na/1.mp4,0,-1\n", ("a/0.mp4", "a/1.mp4"),
            (("a/0.mp4", None, None, None), ("a/1.mp4", None, None, None)),
            ("a/1.mp4,0,-1", "a/1.mp4,5,30"), ", line 2: field 'frames': expected 0 -1, all frames, ",
        ),
        Miniature(
            "label", "list.txt", "frames/x 120 5\nframes/x 120 0\n",
            ("frames/x/img_00001.jpg", "frames/x/img_00002.jpg"),
            (("frames/x", "5", None, None), ("frames/x", "0", None, None)),
            ("120 0", "120 z"), ", line 2: field 'label': expected 'path 0 -1' or 'folder frames label'",
        ),
    ],
    "paths": [
        Miniature(
            "videos", "files.txt", "a/0.mp4\n\n'b c/1.webm'\n", ("a/0.mp4", "b c/1.webm"),
            (("a/0.mp4", None, None, None), ("b c/1.webm", None, None, None)),
            ("b c/1.webm", "b c\0"), ", line 3: field 'video': expected text, got a NUL character in 'b c",
        )
    ],
    "msrvtt_qa": [
        Miniature(
            "questions", "train_qa.json", json.dumps(QA), ("v/video6513.mp4", "v/video6514.mp4"),
            tuple((f"v/video{6513 + n}.mp4", ("what moves?", "ball", ()), None, None) for n in range(2)),
            ('"video_id": 6514', '"video_id": "x"'), ", line 1, entry 2: field 'video_id': expected a number, got 'x'",
        )
    ],
    "msvd_qa": [
        Miniature(
            "questions", "train_qa.json", json.dumps(MSVD_QA), ("v/abc_1_4.avi", "v/zzz_1_2.mp4"),
            (("v/abc_1_4.avi", ("what runs?", "dog", ()), None, None),
             ("v/zzz_1_2.mp4", ("what runs?", "dog", ()), None, None)),
            ('"video_id": 1301', '"video_id": 9'), ", line 1, entry 2: field 'video_id': ",
            beside={"youtube_mapping.txt": "abc_1_4 vid1300\nzzz_1_2 vid1301\n"},
        )
    ],
    "activitynet_qa": [
        Miniature(
            "questions", "val_q.json", json.dumps(ACTIVITYNET_Q), ("v/v_a-b.mp4",),
            (("v/v_a-b.mp4", ("is it red", "yes", ()), None, None),
             ("v/v_a-b.mp4", ("is it red", "no", ()), None, None)),
            ("v_a-b_1", "v_a-b_9"), ", line 1, entry 2: field 'question_id': ",
            beside={"val_a.json": json.dumps(ACTIVITYNET_A)},
        )
    ],
    "tgif_qa": [
        Miniature(
            "questions", "Test_frameqa_question.csv",
            "gif_name\tquestion\tanswer\ttype\tvid_id\tdescription\ntumblr_a\twhat is seen?\tdog\t0\tFRAMEQA7\ta dog\n",
            ("gifs/tumblr_a.gif",), (("gifs/tumblr_a.gif", ("what is seen?", "dog", ()), None, None),),
            ("\tdog\t", "\t\t"), ", line 2: field 'answer': expected non-empty text, got ''",
        ),
        Miniature(
            "questions", "Train_action_question.csv",
            "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\n"
            "tumblr_a\twhat 3 times?\tb\tc\td\te\tf\t2\tA7\t4\n",
            ("gifs/tumblr_a.mp4",),
            (("gifs/tumblr_a.mp4", ("what 3 times?", "d", ("b", "c", "d", "e", "f")), None, None),),
            ("\t2\t", "\t5\t"), ", line 2: field 'answer': expected a number from 0 to 4, got 5",
        ),
    ],
    "nextqa": [
        Miniature(
            "questions", "val.csv", f"{NEXTQA}40,900,640,480,how do they play,3,2,CH,a,b,c,d,e\n", ("v/1164/3238.mp4",),
            (("v/1164/3238.mp4", ("how do they play", "d", ("a", "b", "c", "d", "e")), None, None),),
            (",3,2,CH", ",x,2,CH"), ", line 2: field 'answer': expected a number, got 'x'",
            beside={"map_vid_vidorID.json": '{"40": "1164/3238"}'},
        )
    ],
    "clipbert_qa": [
        Miniature(
            "questions", "train.jsonl",
            lines({"answer": "dog", "question": "what runs?", "video_id": "video7", "answer_type": "x"}),
            ("v/video7.mp4",), (("v/video7.mp4", ("what runs?", "dog", ()), None, None),),
            ('"dog"', "true"), ", line 1: field 'answer': expected non-empty text, got True",
        )
    ],
    "kinetics": [
        Miniature(
            "label", "train.csv",
            'label,youtube_id,time_start,time_end,split\narchery,a_b,3,13,train\n"dancing, tap",c-d,0,10,train\n',
            ("v/archery/a_b_000003_000013.mp4", "v/c-d.mkv"),
            (("v/archery/a_b_000003_000013.mp4", "archery", None, None), ("v/c-d.mkv", "dancing, tap", None, 10.0)),
            (",0,10,", ",0,,"), ", line 3: field 'time_end': expected a number, got ''",
        )
    ],
    "ucf101": [
        Miniature(
            "label", "trainlist01.txt", "Archery/v_Archery_g01_c01.avi 3\r\nBowling/v_Bowling_g02_c01.avi 8\r\n",
            ("UCF-101/Archery/v_Archery_g01_c01.avi", "UCF-101/Bowling/v_Bowling_g02_c01.avi"),
            (("UCF-101/Archery/v_Archery_g01_c01.avi", "Archery", None, None),
             ("UCF-101/Bowling/v_Bowling_g02_c01.avi", "Bowling", None, None)),
            ("Bowling/", ""), ", line 2: field 'video': expected 'Class/video.avi'",
        )
    ],
    "hmdb51": [
        Miniature(
            "label", "brush_hair_test_split1.txt", "April_09.avi 1 \nBlonde.avi 2 \nUnused.avi 0 \n",
            ("brush_hair/April_09.avi", "brush_hair/Blonde.avi", "brush_hair/Unused.avi"),
            (("brush_hair/Blonde.avi", "brush_hair", None, None),),
            ("Blonde.avi 2", "Blonde.avi"), ", line 2: field 'flag': expected 0, 1 or 2",
            more={"split": "test"},
        ),
        Miniature(
            "label", "splits/brush_hair_test_split1.txt", "April_09.avi 1 \nBlonde.avi 2 \n",
            ("brush_hair/April_09.avi", "brush_hair/Blonde.avi"),
            (("brush_hair/April_09.avi", "brush_hair", None, None),),
            ("Blonde.avi 2", "Blonde.avi"),
            "/brush_hair_test_split1.txt, line 2: field 'flag': expected 0, 1 or 2",
            more={"split": "train1"}, opens="splits",
        ),
    ],
    "ssv2": [
        Miniature(
            "label", "something-something-v2-train.json", json.dumps(SSV2), ("v/78687.webm", "v/42326.webm"),
            (("v/78687.webm", "Holding something next to something", None, None),
             ("v/42326.webm", "Pushing something left", None, None)),
            ('"id": "42326"', '"id": 42326'), ", line 1, entry 2: field 'id': expected non-empty text, got 42326",
            beside={"labels.json": '{"Pushing something left": "0", "Holding something next to something": "1"}'},
        ),
    ],
    "ava": [
        Miniature(
            "labels", "ava_train_v2.2.csv", AVA, ("v/-5KQ66BBWC4.mkv",),
            (("v/-5KQ66BBWC4.mkv", ("watch (a person)", "walk"), 900.5, 903.5),),
            (",9,1", ",walk,1"), ", line 2: field 'action_id': expected a number, got 'walk'",
            beside={"ava_action_list_v2.2.pbtxt": AVA_ACTIONS},
        )
    ],
    "folder": [
        Miniature(
            "captions", "some/0.txt", f"{SAY[0]}\n\n{SAY[2]}\n".encode(), ("some/0.flv",),
            (("some/0.flv", (SAY[0], SAY[2]), None, None),), (SAY[2].encode(), b"\xff"),
            "/0.txt, line 3: field 'caption': expected UTF-8 text", opens="some",
        )
    ],
    "class_folders": [
        Miniature(
            "label", "some/run/0.mp4", "", ("some/sit/1.3gp",),
            (("some/run/0.mp4", "run", None, None), ("some/sit/1.3gp", "sit", None, None)),
            ("some/sit/1.3gp", "some/s\udcff/1.3gp"), "/s\\xff/1.3gp: field 'video': expected text", opens="some",
        )
    ],
}  # fmt: skip
