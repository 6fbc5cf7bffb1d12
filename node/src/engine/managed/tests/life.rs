//! A process that is dead, one that only seems so, and what is ended of them.

use super::*;

#[tokio::test]
async fn full_disk_is_the_nodes_fault_and_is_full_of_the_process_no_longer() {
    let Some(machine) = Machine::walled(|_| {}).await else { return };
    let slots = &machine.engine.config.folder;
    std::fs::create_dir_all(slots).expect("made");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=96m", "tmpfs"])
        .arg(slots)
        .output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        eprintln!("skipped: no small file system can be mounted here");
        return;
    }
    machine.file("custom_nodes/filler/__init__.py", FILLER);
    let cancel = CancellationToken::new();
    let failed = machine.run(saving(1, "Filler", &json!({})), &cancel).await;
    let (left, next) = (std::fs::read_dir(slots.join("slot-0")), machine.run(inverted(), &cancel).await);
    let unmounted = std::process::Command::new("umount").arg("--lazy").arg(slots).status();
    let failed = failed.expect_err("the disk is full");
    assert_eq!(failed.kind, RunErrorKind::NodeFault, "{}", failed.detail);
    assert!(failed.detail.contains("the disk of this node is full"), "{}", failed.detail);
    assert!(left.is_err(), "nothing is left of it");
    next.expect("there is room again");
    assert!(unmounted.expect("it starts").success());
}

/// Fills the disk where nobody looks for outputs.
const FILLER: &str = r#"
import os
class Filler:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}
    def execute(self, image):
        with open(os.path.expanduser("~/filler"), "wb") as file:
            while True:
                file.write(bytes(1 << 20))
NODE_CLASS_MAPPINGS = {"Filler": Filler}
"#;

/// Ends ComfyUI's prompt thread after its run, which is the first of its process, once for each name; and works for long without a word.
const WEARY: &str = r#"
import os, time, comfy.model_management
class Weary:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "name": ("STRING", {})}}
    def execute(self, image, name):
        mark = os.path.join("FOLDER", name)
        if not os.path.exists(mark):
            open(mark, "w").close()
            def fail(*_, **__):
                raise RuntimeError("no cache to empty")
            comfy.model_management.soft_empty_cache = fail
        return (image,)
class Silent:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "execute", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "seconds": ("FLOAT", {"max": 600.0})}}
    def execute(self, image, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(range(10_000))
        return (image,)
NODE_CLASS_MAPPINGS = {"Weary": Weary, "Silent": Silent}
"#;

fn machine() -> Option<Machine> {
    let machine = Machine::new(|config| config.comfyui.stall_after = Duration::from_secs(4))?;
    let script = WEARY.replace("FOLDER", &machine.folder.path().display().to_string());
    machine.file("custom_nodes/weary/__init__.py", &script);
    Some(machine)
}

#[tokio::test]
async fn process_that_died_after_a_run_is_ended_with_the_next_one_whether_that_waits_or_is_cancelled() {
    let Some(machine) = machine() else { return };
    let cancel = CancellationToken::new();
    let ended_by = async |name: &str| {
        machine.run(saving(1, "Weary", &json!({ "name": name })), &cancel).await.expect("a picture");
        machine.process().await.expect("it looks warm")
    };
    ended_by("first").await;
    let impatient = CancellationToken::new();
    let running = machine.run(saving(2, "ImageInvert", &json!({})), &impatient);
    let (failed, ()) = tokio::join!(running, async {
        sleep(Duration::from_secs(1)).await;
        impatient.cancel();
    });
    assert_eq!(failed.expect_err("it is cancelled").kind, RunErrorKind::Canceled);
    assert_eq!(machine.process().await, None, "it would not take up the next one either");

    let dead = ended_by("second").await;
    machine.run(inverted(), &cancel).await.expect("a picture of another process");
    assert_ne!(machine.process().await.expect("it is warm"), dead);
}

#[tokio::test]
async fn op_that_works_for_long_and_tells_nothing_of_it_is_left_to_work() {
    let Some(machine) = machine() else { return };
    let cancel = CancellationToken::new();
    machine.run(inverted(), &cancel).await.expect("a picture");
    let process = machine.process().await;
    machine.run(saving(1, "Silent", &json!({ "seconds": 12.0 })), &cancel).await.expect("a picture");
    assert_eq!(machine.process().await, process, "it was never ended");
}
