//! The file that an op names by its path: one in ComfyUI's own folders, and never one elsewhere.
//!
//! ComfyUI itself reads the file, so nothing comes to light here that its process may not see. Not here: asking it
//! (`client.rs`).

use std::path::{Component, Path, PathBuf};

use protocol::{RunError, RunErrorKind};

use super::answer::ServedFile;
use crate::engine::op_error;

/// The folders out of which ComfyUI gives files away.
const SERVED: [&str; 3] = ["output", "input", "temp"];

/// Where a path may lead.
#[derive(Clone, Copy, Debug)]
pub(super) enum Within<'a> {
    /// The folder of a ComfyUI that is the node's own, with [`SERVED`] in it.
    Folder(&'a Path),
    /// The folder of this run alone, because nobody knows where the others of an owner's ComfyUI are.
    Run(&'a str),
}

/// What ComfyUI calls the file at the path that an op told.
pub(super) fn named_file(op: &str, told: &str, within: Within<'_>) -> Result<ServedFile, RunError> {
    let found = match within {
        Within::Folder(folder) => in_folder(told, folder),
        Within::Run(run) => of_run(told, run),
    };
    found.ok_or_else(|| {
        let where_ = match within {
            Within::Folder(_) => "no file in ComfyUI's output, input or temp folder",
            Within::Run(_) => {
                "no file below the `filename_prefix` of this run, and an attached ComfyUI gives away no other: run the \
                 workflow on a node that rebuilds workspaces"
            }
        };
        op_error(RunErrorKind::NoOutput, op, "PreviewAny", format_args!("`{}` is {where_}", shortened(told)))
    })
}

/// A path as the process means it: relative to ComfyUI's folder, or the name of a file that came with the job.
fn in_folder(told: &str, folder: &Path) -> Option<ServedFile> {
    let folder = folder.canonicalize().ok()?;
    let told = Path::new(told);
    let inside = told.strip_prefix(&folder).unwrap_or(told);
    [inside.to_owned(), Path::new("input").join(inside)].into_iter().find_map(|inside| {
        let names = names(&inside)?;
        let (first, rest) = names.split_first()?;
        // A link that leads out of its folder is not followed.
        let real = folder.join(&inside).canonicalize().ok()?;
        let stays = SERVED.contains(first) && real.starts_with(folder.join(first)) && real.is_file();
        stays.then(|| served(first, rest)).flatten()
    })
}

/// A path below the folder of the run, whose id nobody else has.
fn of_run(told: &str, run: &str) -> Option<ServedFile> {
    let inside: PathBuf = Path::new(told).components().filter(|part| *part != Component::RootDir).collect();
    let names = names(&inside)?;
    let place = names.iter().position(|name| *name == run)?;
    served("output", &names[place.checked_sub(1)?..])
}

/// The parts of a path that goes nowhere but down.
fn names(path: &Path) -> Option<Vec<&str>> {
    let name = |part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    };
    path.components().filter(|part| *part != Component::CurDir).map(name).collect()
}

fn served(folder: &str, names: &[&str]) -> Option<ServedFile> {
    let (filename, subfolder) = names.split_last()?;
    Some(ServedFile {
        filename: (*filename).to_owned(),
        subfolder: subfolder.join("/"),
        folder: folder.to_owned(),
    })
}

fn shortened(told: &str) -> String {
    told.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn place(file: Result<ServedFile, RunError>) -> Option<String> {
        file.ok().map(|file| format!("{}:{}/{}", file.folder, file.subfolder, file.filename))
    }

    #[test]
    fn file_is_found_in_comfyuis_folders_and_nowhere_else() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let code = root.path().join("ComfyUI");
        for file in [
            "ComfyUI/output/run/a.glb",
            "ComfyUI/input/in.bin",
            "ComfyUI/temp/t.ply",
            "ComfyUI/main.py",
            "secret",
        ] {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            std::fs::write(path, file).expect("written");
        }
        symlink(root.path().join("secret"), code.join("output/link")).expect("linked");
        symlink(root.path(), code.join("output/out")).expect("linked");
        let check = |told: &str, expected: Option<&str>| {
            let found = place(named_file("7", told, Within::Folder(&code)));
            assert_eq!(found.as_deref(), expected, "{told}");
        };
        let absolute = |path: &str| format!("{}/{path}", code.display());
        check(&absolute("output/run/a.glb"), Some("output:run/a.glb"));
        check("output/run/a.glb", Some("output:run/a.glb"));
        check("./temp/t.ply", Some("temp:/t.ply"));
        check("in.bin", Some("input:/in.bin"));
        for told in
            ["output/absent", "output/run", "main.py", "output/../main.py", "../secret", "", "/etc/passwd"]
        {
            check(told, None);
            check(&absolute(told), None);
        }
        for told in ["output/link", "output/out/secret", "output/out/ComfyUI/output/run/a.glb"] {
            check(
                told,
                if told.ends_with(".glb") { Some("output:out/ComfyUI/output/run/a.glb") } else { None },
            );
        }
    }

    #[test]
    fn owners_comfyui_gives_away_what_this_run_saved_alone() {
        let check = |told: &str, expected: Option<&str>| {
            let file = named_file("7", told, Within::Run("run-1"));
            if let Err(error) = &file {
                assert_eq!(error.kind, RunErrorKind::NoOutput);
            }
            assert_eq!(place(file).as_deref(), expected, "{told}");
        };
        check("/home/me/out/comfy-farm/run-1/mesh_1.glb", Some("output:comfy-farm/run-1/mesh_1.glb"));
        check("comfy-farm/run-1/a/b.glb", Some("output:comfy-farm/run-1/a/b.glb"));
        for told in
            ["/home/me/out/comfy-farm/run-2/x", "/home/me/out/x", "comfy-farm/run-1/../x", "run-1/x", "run-1"]
        {
            check(told, None);
        }
    }
}
