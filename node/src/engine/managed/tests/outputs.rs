//! What comes back of each class of comfy-pack, and of ComfyUI's own savers, from a ComfyUI that has no comfy-pack.

use std::collections::BTreeMap;
use std::io::Read;

use super::*;

/// Every class of comfy-pack once, and the savers of ComfyUI that a caller may name.
fn everything() -> Value {
    let op = |class: &str, title: &str, inputs: Value| json!({ "class_type": class, "inputs": inputs, "_meta": { "title": title } });
    let output = |class: &str, title: &str, mut inputs: Value| {
        inputs["filename_prefix"] = json!("cpack_output_");
        op(class, title, inputs)
    };
    json!({
        "1": op("CPackInputInt", "size", json!({ "value": 16, "min": 8, "max": 64 })),
        "2": op("CPackInputString", "words", json!({ "value": "größer\n" })),
        "3": op("CPackInputAny", "count", json!({ "input": 2 })),
        "4": op("CPackInputImage", "photo", json!({ "image": "x.png" })),
        "5": op("CPackInputFile", "sound", json!({ "path": "x.wav" })),
        "10": op("EmptyImage", "", json!({ "width": ["1", 0], "height": ["1", 0], "batch_size": ["3", 0], "color": 255 })),
        "11": op("LoadAudio", "", json!({ "audio": ["5", 0] })),
        "12": op("CreateVideo", "", json!({ "images": ["10", 0], "fps": 8.0 })),
        "13": op("Writer", "", json!({ "text": ["2", 0], "place": "output" })),
        "20": output("CPackOutputImage", "pictures", json!({ "images": ["10", 0] })),
        "21": output("CPackOutputImage", "same", json!({ "images": ["4", 0] })),
        "22": output("CPackOutputTextFile", "note", json!({ "text": ["13", 1], "file_extension": ".md" })),
        "23": output("CPackOutputTextFile", "echo", json!({ "text": ["2", 0] })),
        "24": output("CPackOutputFile", "report", json!({ "filename": ["13", 0] })),
        "25": output("CPackOutputFile", "passed_on", json!({ "filename": ["5", 0] })),
        "26": output("CPackOutputAudio", "tone", json!({ "audio": ["11", 0] })),
        "27": output("CPackOutputVideo", "film", json!({ "video": ["12", 0], "format": "mp4", "codec": "h264" })),
        "28": output("CPackOutputZip", "pack", json!({ "images": ["10", 0], "text": ["2", 0] })),
        "29": op("CPackOutputZipSwitch", "", json!({})),
    })
}

/// Writes a file into a folder of ComfyUI's, or tells a path elsewhere.
const WRITER: &str = r#"
import os, folder_paths
class Writer:
    RETURN_TYPES, FUNCTION, CATEGORY = ("STRING", "STRING"), "execute", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {}), "place": ("STRING", {})}}
    def execute(self, text, place):
        folder = folder_paths.get_directory_by_type(place)
        if folder is None:
            return (place, text)
        path = os.path.join(folder, "reports", "r.csv")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write("a,b\n")
        return (path, text.upper())
NODE_CLASS_MAPPINGS = {"Writer": Writer}
"#;

/// One second of silence, as LoadAudio takes it.
fn wav() -> Vec<u8> {
    let samples = vec![0; 16_000];
    let mut bytes = b"RIFF".to_vec();
    bytes.extend(u32::try_from(36 + samples.len()).expect("small").to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data");
    bytes.extend(u32::try_from(samples.len()).expect("small").to_le_bytes());
    bytes.extend(samples);
    bytes
}

fn png() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(4, 4, image::Rgb([9, 8, 7]))
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("memory");
    bytes.into_inner()
}

/// A file's name, media type and bytes.
type Made<'a> = (&'a str, &'a str, Vec<u8>);

/// The files of each output.
fn by_output(outputs: &[NewOutput]) -> BTreeMap<&str, Vec<Made<'_>>> {
    let mut files: BTreeMap<&str, Vec<Made<'_>>> = BTreeMap::new();
    for NewOutput { output, index, file_name, media_type, path } in outputs {
        let of_output = files.entry(output).or_default();
        assert_eq!(of_output.len(), usize::try_from(*index).expect("small"));
        of_output.push((file_name, media_type, std::fs::read(path).expect("there")));
    }
    files
}

fn entries(zip: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(zip)).expect("a zip");
    let count = zip.len();
    let entry = |place| {
        let (mut entry, mut bytes) = (zip.by_index(place).expect("an entry"), Vec::new());
        entry.read_to_end(&mut bytes).expect("it is whole");
        (entry.name().expect("a name").into_owned(), bytes)
    };
    (0..count).map(entry).collect()
}

#[tokio::test]
async fn every_class_of_comfy_pack_gives_its_files_and_gives_them_again() {
    let Some(machine) = Machine::walled(|_| {}).await else { return };
    machine.file("custom_nodes/writer/__init__.py", WRITER);
    let (photo, sound) = (png(), wav());
    let files: [(&str, &str, &[u8]); 2] = [("photo", "cat.png", &photo), ("sound", "hum.wav", &sound)];
    let first = machine.job(&everything(), &files).await.expect("all outputs");
    let first = by_output(&first);
    let shapes: Vec<(&str, usize, &str, &str)> =
        first.iter().map(|(output, files)| (*output, files.len(), files[0].0, files[0].1)).collect();
    let passed_on = format!("comfy-farm-{}.wav", &BlobRef::of(&sound).hash.to_string()[..16]);
    let text = "text/plain; charset=utf-8";
    assert_eq!(
        shapes,
        [
            ("echo", 1, "echo_0001.txt", text),
            ("film", 1, "film_00001_.mp4", "video/mp4"),
            ("note", 1, "note_0001.md", text),
            ("pack", 1, "pack_batch_00001.zip", "application/zip"),
            ("passed_on", 1, &*passed_on, "audio/x-wav"),
            ("pictures", 2, "pictures_00001_.png", "image/png"),
            ("report", 1, "r.csv", "text/csv"),
            ("same", 1, "same_00001_.png", "image/png"),
            ("tone", 1, "tone_00001_.flac", "audio/flac"),
        ]
    );
    let bytes = |output: &str, index: usize| first[output][index].2.as_slice();
    assert_eq!(bytes("echo", 0), "größer\n".as_bytes());
    assert_eq!(bytes("note", 0), "GRÖSSER\n".as_bytes());
    assert_eq!(bytes("report", 0), b"a,b\n");
    assert_eq!(bytes("passed_on", 0), sound);
    assert!(bytes("tone", 0).starts_with(b"fLaC") && bytes("film", 0)[4..].starts_with(b"ftyp"));
    let pixels = |png: &[u8]| image::load_from_memory(png).expect("a picture").to_rgb8();
    assert_eq!(pixels(bytes("same", 0)), pixels(&photo));
    let zipped = entries(bytes("pack", 0));
    let names: Vec<&str> = zipped.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["image_00000.png", "text_00000.txt", "image_00001.png", "text_00001.txt"]);
    assert_eq!(pixels(&zipped[2].1), pixels(bytes("pictures", 1)));
    assert_eq!(
        (zipped[3].1.as_slice(), pixels(&zipped[0].1).dimensions()),
        ("größer\n".as_bytes(), (16, 16))
    );

    // Nothing but the saving is left to do, and nothing is missing.
    let process = machine.process().await;
    let again = machine.job(&everything(), &files).await.expect("all outputs again");
    let again = by_output(&again);
    assert_eq!(machine.process().await, process, "the process is the same");
    assert_eq!(again.keys().collect::<Vec<_>>(), first.keys().collect::<Vec<_>>());
    for output in ["echo", "note", "report", "passed_on"] {
        assert_eq!(again[output], first[output], "{output}");
    }
    assert_eq!(pixels(&again["pictures"][1].2), pixels(bytes("pictures", 1)));

    savers_of_comfyui_itself_do_the_same(&machine).await;
    path_that_leads_elsewhere_gives_nothing(&machine).await;
}

/// Saves under its prefix, as many ops for meshes and archives do, and reports nothing.
const QUIET: &str = r#"
import os, folder_paths
class Quiet:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "execute", "test", True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {}), "filename_prefix": ("STRING", {"default": "x"})}}
    def execute(self, text, filename_prefix):
        output = folder_paths.get_output_directory()
        folder, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, output)
        with open(os.path.join(folder, f"{name}_{counter:05}_.glb"), "w") as file:
            file.write(text)
        return ()
NODE_CLASS_MAPPINGS = {"Quiet": Quiet}
"#;

#[tokio::test]
async fn files_come_back_of_an_op_that_reports_none_and_come_again_after_the_folders_were_emptied() {
    let Some(machine) = Machine::walled(|_| {}).await else { return };
    machine.file("custom_nodes/quiet/__init__.py", QUIET);
    let cancel = CancellationToken::new();
    for text in ["first", "first", "second"] {
        let next = machine.next(Workflow::default());
        let prefix = format!("comfy-farm/{}/mesh", next.run);
        let graph =
            json!({ "9": { "class_type": "Quiet", "inputs": { "text": text, "filename_prefix": prefix } } });
        let workflow = Workflow::parse(graph.to_string().as_bytes()).expect("a workflow");
        let made =
            machine.execute(Execution { workflow, outputs: vec!["9".to_owned()], ..next }, &cancel).await;
        let made = made.expect("a file");
        assert_eq!((made.len(), made[0].file_name.as_str()), (1, "mesh_00001_.glb"));
        assert_eq!(std::fs::read_to_string(&made[0].path).expect("the file"), text);
    }

    // Ops without a prefix of the run's own, of which nothing is left to execute.
    let mut preview = inverted();
    preview["9"] = json!({ "class_type": "PreviewImage", "inputs": { "images": ["2", 0] } });
    for graph in [inverted(), preview] {
        let pixels = async || {
            let made = machine.run(graph.clone(), &cancel).await.expect("a picture");
            image::open(&made[0].path).expect("a picture").into_rgb8()
        };
        let first = pixels().await;
        for folder in ["output", "temp"] {
            let folder = machine.folder.path().join("slots/slot-0/ComfyUI").join(folder);
            std::fs::remove_dir_all(&folder).expect("removed");
            std::fs::create_dir(&folder).expect("made");
        }
        assert_eq!(pixels().await, first);
    }
}

/// Ops that a deployer names; those that save nothing for good too.
async fn savers_of_comfyui_itself_do_the_same(machine: &Machine) {
    let saving = |class: &str, inputs: Value| {
        json!({
            "1": { "class_type": "EmptyImage", "inputs": { "width": 8, "height": 8, "batch_size": 3, "color": 77 } },
            "2": { "class_type": "CreateVideo", "inputs": { "images": ["1", 0], "fps": 4.0 } },
            "9": { "class_type": class, "inputs": inputs }
        })
    };
    let images = json!(["1", 0]);
    let webp = json!({
        "images": images, "filename_prefix": "x", "fps": 4.0, "lossless": true, "quality": 80, "method": "default"
    });
    let video = json!({ "video": ["2", 0], "filename_prefix": "x", "format": "auto", "codec": "auto" });
    for (class, inputs, count, media_type) in [
        ("SaveImage", json!({ "images": images, "filename_prefix": "x" }), 3, "image/png"),
        ("PreviewImage", json!({ "images": images }), 3, "image/png"),
        ("SaveAnimatedWEBP", webp, 1, "image/webp"),
        ("SaveVideo", video, 1, "video/mp4"),
        ("PreviewAny", json!({ "source": 3.5 }), 1, "text/plain; charset=utf-8"),
    ] {
        for time in ["first", "second"] {
            let produced = machine.run(saving(class, inputs.clone()), &CancellationToken::new()).await;
            let produced = produced.unwrap_or_else(|error| panic!("{class}, {time} time: {error}"));
            assert_eq!(produced.len(), count, "{class}, {time} time");
            assert!(produced.iter().all(|file| file.media_type == media_type), "{class}: {produced:?}");
        }
    }
}

async fn path_that_leads_elsewhere_gives_nothing(machine: &Machine) {
    for place in ["/etc/hostname", "../../etc/hostname", "main.py", "output/absent"] {
        let graph = json!({
            "1": { "class_type": "Writer", "inputs": { "text": "t", "place": place } },
            "2": { "class_type": "CPackOutputFile", "inputs": { "filename": ["1", 0] }, "_meta": { "title": "out" } }
        });
        let failed = machine.job(&graph, &[]).await.expect_err("it is refused");
        assert_eq!(failed.kind, RunErrorKind::NoOutput, "{place}");
        assert!(failed.detail.contains(&format!("`{place}` is no file in ComfyUI's")), "{}", failed.detail);
    }
}
