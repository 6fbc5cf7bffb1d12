//! One process for the workspaces of one code and environment, and a process for each slot.

use super::*;

/// Writes an upscaler that ComfyUI's loader takes for one, of random weights.
const UPSCALER: &str = "
import sys, torch
from safetensors.torch import save_file
random = torch.Generator().manual_seed(int(sys.argv[2]))
weights = lambda *shape: torch.randn(*shape, generator=random) * 0.05
model = {'body.0.weight': weights(8, 3, 3, 3), 'body.0.bias': weights(8), 'body.1.weight': torch.full((8,), 0.25)}
for at in (2, 4):
    model[f'body.{at}.weight'], model[f'body.{at}.bias'] = weights(8, 8, 3, 3), weights(8)
    model[f'body.{at + 1}.weight'] = torch.full((8,), 0.25)
model['body.6.weight'], model['body.6.bias'] = weights(12, 8, 3, 3), weights(12)
save_file({name: tensor.contiguous() for name, tensor in model.items()}, sys.argv[1])
";

/// Enlarges a picture of one colour with a model.
fn enlarging(model: &str) -> Value {
    json!({
        "1": { "class_type": "EmptyImage", "inputs": { "width": 8, "height": 8, "batch_size": 1, "color": 99 } },
        "2": { "class_type": "UpscaleModelLoader", "inputs": { "model_name": model } },
        "3": { "class_type": "ImageUpscaleWithModel", "inputs": { "upscale_model": ["2", 0], "image": ["1", 0] } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["3", 0], "filename_prefix": "x" } },
    })
}

impl Machine {
    /// The file of a model, as a store would have it.
    fn upscaler(&self, seed: u8) -> PathBuf {
        let file = self.folder.path().join(format!("blob-{seed}"));
        let made = std::process::Command::new(&self.workspace.python)
            .args(["-c", UPSCALER])
            .arg(&file)
            .arg(seed.to_string())
            .output()
            .expect("it starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        file
    }

    /// Another workspace of the same code and environment, with this model.
    fn beside(&self, number: u8, model: &str, blob: &Path) -> Arc<Workspace> {
        let files = self.folder.path().join(format!("files-{number}"));
        let place = files.join("models/upscale_models").join(model);
        std::fs::create_dir_all(place.parent().expect("it has one")).expect("made");
        std::os::unix::fs::symlink(blob, place).expect("linked");
        let lockfile = LockfileHash(BlobHash([number; 32]));
        let model_names = [format!("upscale_models/{model}")].into();
        Arc::new(Workspace { lockfile, files, model_names, ..self.workspace.clone() })
    }

    /// The picture that a model of a workspace makes.
    async fn enlarge(&self, workspace: &Arc<Workspace>, model: &str) -> Vec<u8> {
        let made = self.try_to_enlarge(workspace, model).await.expect("a picture");
        image::load_from_memory(&std::fs::read(&made[0].path).expect("the picture"))
            .expect("a picture")
            .into_rgb8()
            .into_raw()
    }

    async fn try_to_enlarge(
        &self,
        workspace: &Arc<Workspace>,
        model: &str,
    ) -> Result<Vec<ProducedFile>, RunError> {
        let graph = serde_json::to_vec(&enlarging(model)).expect("JSON");
        let execution = self.next(Workflow::parse(&graph).expect("a workflow"));
        let (workspace, outputs) = (Some(Arc::clone(workspace)), vec!["9".to_owned()]);
        self.execute(Execution { workspace, outputs, ..execution }, &CancellationToken::new()).await
    }
}

#[tokio::test]
async fn process_serves_all_workspaces_of_its_code_and_starts_anew_where_two_contradict() {
    let Some(machine) = Machine::walled(|_| {}).await else { return };
    let blobs = [1, 2, 3].map(|seed| machine.upscaler(seed));
    let (first, second) =
        (machine.beside(1, "a.safetensors", &blobs[0]), machine.beside(2, "b.safetensors", &blobs[1]));
    let contradicting = machine.beside(4, "a.safetensors", &blobs[2]);
    let warm = async || {
        let all = [&first, &second, &contradicting].map(Arc::clone);
        let number = |lockfile: LockfileHash| lockfile.0.0[0];
        let numbers = |serves: BTreeSet<LockfileHash>| serves.into_iter().map(number).collect::<Vec<_>>();
        let warm = machine.engine.warm(&all).await;
        warm.into_iter().map(|(slot, serves)| (slot.0, numbers(serves))).collect::<BTreeMap<_, _>>()
    };
    let numbers = |numbers: &[u8]| BTreeMap::from([(0_u16, numbers.to_vec())]);
    assert_eq!(warm().await, BTreeMap::new(), "nothing is up");
    let of_first = machine.enlarge(&first, "a.safetensors").await;
    assert_eq!(warm().await, numbers(&[1, 2]), "the second would come to it");
    let process = machine.process().await.expect("it is warm");
    let of_second = machine.enlarge(&second, "b.safetensors").await;
    assert_eq!(machine.process().await, Some(process), "the second came to the first");
    assert_ne!(of_first, of_second);
    // Proving a third one takes the warm process as well.
    let third = machine.beside(3, "c.safetensors", &blobs[2]);
    assert_eq!(machine.engine.prove(&third, &CancellationToken::new()).await, Ok(()));
    assert_eq!(machine.enlarge(&first, "a.safetensors").await, of_first);
    assert_eq!(machine.process().await, Some(process));
    if machine.engine.config.sandbox.is_some() {
        let folders = machine.folder.path().join("slots/slot-0.further");
        assert_eq!(std::fs::read_dir(folders).expect("a folder").count(), 2, "each came by a link");
    }

    let of_third = machine.enlarge(&contradicting, "a.safetensors").await;
    let anew = machine.process().await.expect("it is warm");
    assert!(anew != process && of_third != of_first, "its model is another one of the same name");
    assert_eq!(machine.enlarge(&third, "c.safetensors").await, of_third, "the same model, beside it");
    assert_eq!(machine.process().await, Some(anew));
    assert_eq!(warm().await, numbers(&[2, 4]), "the first would have it start anew again");
}

#[tokio::test]
async fn workflow_sees_no_model_of_another_one_in_a_process_that_both_have() {
    let Some(machine) = Machine::walled(|_| {}).await else { return };
    let blobs = [1, 2].map(|seed| machine.upscaler(seed));
    let (first, second) =
        (machine.beside(1, "a.safetensors", &blobs[0]), machine.beside(2, "b.safetensors", &blobs[1]));
    let of_first = machine.enlarge(&first, "a.safetensors").await;
    let process = machine.process().await.expect("it is warm");
    machine.enlarge(&second, "b.safetensors").await;
    // What it fails with on a machine that has nothing warm, because it was packed without that model.
    let undeclared = async |workspace: &Arc<Workspace>| {
        let failed = machine.try_to_enlarge(workspace, "a.safetensors").await.expect_err("not its own");
        assert_eq!(failed.kind, RunErrorKind::MissingModel, "{}", failed.detail);
        failed.detail
    };
    let told = undeclared(&second).await;
    assert_eq!(machine.enlarge(&first, "a.safetensors").await, of_first);
    assert_eq!(undeclared(&second).await, told);
    assert_eq!(machine.enlarge(&first, "a.safetensors").await, of_first);
    assert_eq!(machine.process().await, Some(process), "all of it in the warm one");
    let wanting = Workspace { model_names: first.model_names.clone(), ..Workspace::clone(&second) };
    let wanting = Arc::new(Workspace { lockfile: LockfileHash(BlobHash([3; 32])), ..wanting });
    let proven = machine.engine.prove(&wanting, &CancellationToken::new()).await;
    let reason = proven.expect_err("it is not among its files");
    assert!(reason.contains("`upscale_models/a.safetensors`"), "{reason}");
    assert_eq!(undeclared(&second).await, told, "as with a process of its own");
}

#[tokio::test]
async fn process_whose_models_a_run_changed_is_warm_for_nobody_and_gives_way_to_a_sound_one() {
    let Some(machine) = Machine::walled(|_| {}).await else { return };
    let blobs = [1, 2].map(|seed| machine.upscaler(seed));
    let (first, second) =
        (machine.beside(1, "a.safetensors", &blobs[0]), machine.beside(2, "b.safetensors", &blobs[1]));
    let of_first = machine.enlarge(&first, "a.safetensors").await;
    let process = machine.process().await.expect("it is warm");
    let both = BTreeSet::from([first.lockfile, second.lockfile]);
    let model = machine.folder.path().join("slots/slot-0/ComfyUI/models/upscale_models/a.safetensors");
    let as_a_run_may = || std::fs::remove_file(&model).expect("removed");
    as_a_run_may();
    assert_eq!(machine.enlarge(&first, "a.safetensors").await, of_first);
    let anew = machine.process().await.expect("it is warm");
    assert_ne!(anew, process, "the model was gone from the earlier one");
    as_a_run_may();
    std::fs::write(&model, "its own").expect("written");
    let all = [Arc::clone(&first), Arc::clone(&second)];
    assert_eq!(machine.engine.warm(&all).await, BTreeMap::from([(SlotId(0), both)]));
    let slot = machine.engine.slot(SlotId(0));
    let joined = slot.process.lock().await.up().expect("it is up").join(&second).await;
    assert!(!joined, "a file that is no link is not taken out");
    assert_eq!(machine.engine.warm(&all).await, BTreeMap::new());
    assert_eq!(machine.enlarge(&first, "a.safetensors").await, of_first);
    assert!(machine.process().await.is_some_and(|last| last != anew));
}

#[tokio::test]
async fn two_slots_work_side_by_side_each_in_a_process_and_folders_of_its_own() {
    let two = |config: &mut ManagedConfig| config.devices.push(Device::Cpu { threads: 1, memory: 8 << 30 });
    let Some(machine) = Machine::walled(two).await else { return };
    // Neither goes on before the other is there.
    let meeting = machine.folder.path().join("slots");
    machine.file("custom_nodes/meeting/__init__.py", MEETING);
    let run = |slot: u16| {
        let graph = saving(u32::from(slot) + 1, "Meeting", &json!({ "name": slot.to_string() }));
        let workflow = Workflow::parse(&serde_json::to_vec(&graph).expect("JSON")).expect("a workflow");
        Execution { slot: SlotId(slot), outputs: vec!["9".to_owned()], ..machine.next(workflow) }
    };
    let cancel = CancellationToken::new();
    let meet = async {
        for slot in ["0", "1"] {
            let (output, told) =
                (meeting.join(format!("slot-{slot}/ComfyUI/output")), format!("here-{slot}"));
            let there = async {
                while !output.join(&told).exists() {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(START * 2, there).await.expect("each writes into its own folder");
        }
        for slot in ["0", "1"] {
            std::fs::write(meeting.join(format!("slot-{slot}/ComfyUI/output/go")), "").expect("written");
        }
    };
    let (one, other, ()) =
        tokio::join!(machine.execute(run(0), &cancel), machine.execute(run(1), &cancel), meet);
    let colours = [one, other].map(|made| {
        let made = made.expect("a picture");
        image::open(&made[0].path).expect("a picture").into_rgb8().get_pixel(0, 0).0
    });
    assert_eq!(colours, [[0, 0, 1], [0, 0, 2]], "each has its own picture");
    let (one, other) = (machine.process_of(SlotId(0)).await, machine.process_of(SlotId(1)).await);
    assert!(one.is_some() && other.is_some() && one != other);
}

#[tokio::test]
async fn proof_takes_an_idle_slot_or_waits_for_one_and_starts_nothing_beside_a_run() {
    let Some(machine) = Machine::walled(|_| {}).await else { return };
    machine.file("custom_nodes/meeting/__init__.py", MEETING);
    machine.file("models/upscale_models/a.safetensors", "another model at this path");
    let output = machine.folder.path().join("slots/slot-0/ComfyUI/output");
    // No process can serve both.
    let contradicting = machine.beside(2, "a.safetensors", &machine.upscaler(1));
    let cancel = CancellationToken::new();
    machine.run(inverted(), &cancel).await.expect("a picture");
    let first = machine.process().await.expect("it is warm");
    assert_eq!(machine.engine.prove(&contradicting, &cancel).await, Ok(()));
    let second = machine.process().await.expect("it stays for the first run");
    assert!(first != second && !PathBuf::from(format!("/proc/{first}")).exists(), "the idle one made way");

    let at_work = machine.run(saving(1, "Meeting", &json!({ "name": "0" })), &cancel);
    let proof = async {
        while !output.join("here-0").exists() {
            sleep(Duration::from_millis(20)).await;
        }
        let proving = machine.engine.prove(&contradicting, &cancel);
        tokio::pin!(proving);
        // It has looked at the one slot, which is busy.
        assert!(futures::poll!(proving.as_mut()).is_pending());
        std::fs::write(output.join("go"), "").expect("written");
        proving.await
    };
    let (made, proven) = timeout(START * 3, async { tokio::join!(at_work, proof) }).await.expect("both end");
    made.expect("the run is not disturbed");
    assert_eq!(proven, Ok(()));
    let proof = machine.process().await.expect("the proof came into the slot");
    machine.enlarge(&contradicting, "a.safetensors").await;
    assert_eq!(machine.process().await, Some(proof));
    let slots = std::fs::read_dir(machine.folder.path().join("slots")).expect("a folder");
    let names = slots.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    assert_eq!(names.filter(|name| !name.starts_with("slot-0")).count(), 0, "no process had another folder");
}

/// Says that it is there, and waits until it may go on.
const MEETING: &str = r#"
import os, time, folder_paths
class Meeting:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "name": ("STRING", {})}}
    def execute(self, image, name):
        folder = folder_paths.get_output_directory()
        open(os.path.join(folder, "here-" + name), "w").close()
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.02)
        return (image,)
NODE_CLASS_MAPPINGS = {"Meeting": Meeting}
"#;
