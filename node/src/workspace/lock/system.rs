//! What packages and custom nodes need of the system: the libraries that they are linked to and do not bring, and the
//! programs that they call.
//!
//! Libraries stand in the compiled files themselves (`DT_NEEDED`, System V ABI, chapter 5). Programs stand nowhere: whoever
//! packs names them, and a traced run notes which it calls. Not here: whether a node has them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use object::elf::{DT_NEEDED, DT_SONAME, FileHeader64};
use object::read::elf::FileHeader;
use object::{Endianness, ReadCache};
use protocol::{SystemNeed, SystemNeeds};

use super::LockError;
use crate::os::installed::{Libraries, packages_of, program};

/// The beginnings of names that need no word: what each system has, and what comes with the driver of a card or with Python.
const OF_EVERY_SYSTEM: [&str; 16] = [
    "ld-linux",
    "libanl.so",
    "libc.so",
    "libcuda.so",
    "libdl.so",
    "libgcc_s.so",
    "libm.so",
    "libmvec.so",
    "libnvcuvid.so",
    "libnvidia-",
    "libpthread.so",
    "libpython",
    "libresolv.so",
    "librt.so",
    "libutil.so",
    "linux-vdso",
];
/// How deep folders are looked into: no package lays its files deeper.
const DEEPEST: usize = 32;

/// What the packages in these folders and the custom nodes of a ComfyUI are linked to, and the programs that whoever packs
/// names. What this machine itself lacks of libraries is not among them, because what works here works without it; a
/// program that is not here is refused. Blocks.
pub(super) fn needs(
    comfyui: &Path,
    sites: Vec<PathBuf>,
    programs: &[String],
) -> Result<SystemNeeds, LockError> {
    if let Some(name) = programs.iter().find(|name| program(name).is_none()) {
        return Err(LockError::NoProgram { name: name.clone() });
    }
    let mut linked = Linked::default();
    let mut libraries = BTreeSet::new();
    if let Some(here) = Libraries::look() {
        for folder in sites.into_iter().chain(custom_nodes(comfyui)) {
            linked.enter(&folder, DEEPEST);
        }
        libraries.extend(linked.lacking().filter(|name| here.has(name)));
    }
    Ok(described(&libraries, &programs.iter().map(String::as_str).collect()))
}

/// The folders of custom nodes that are switched on.
fn custom_nodes(comfyui: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(comfyui.join("custom_nodes")).into_iter().flatten().flatten();
    let is_on = |entry: &fs::DirEntry| !entry.file_name().to_string_lossy().ends_with(".disabled");
    entries.filter(is_on).filter_map(|entry| entry.path().canonicalize().ok())
}

/// Adds the programs that a run called, by their paths: those that are found by their names alone, as they will be on
/// another machine.
pub(super) fn add_programs(needs: &mut SystemNeeds, called: &BTreeSet<PathBuf>) {
    let name = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let is_new = |name: &&str| !needs.programs.iter().any(|need| need.name.as_str() == *name);
    let found =
        called.iter().filter_map(|path| name(path).filter(|name| program(name).as_ref() == Some(path)));
    let found: BTreeSet<String> = found.collect();
    let called = found.iter().map(String::as_str).filter(is_new).collect();
    needs.programs.extend(described(&BTreeSet::new(), &called).programs);
    needs.programs.sort_by(|a, b| a.name.cmp(&b.name));
}

/// Each with the package of this system that brought it.
fn described(libraries: &BTreeSet<&str>, programs: &BTreeSet<&str>) -> SystemNeeds {
    let packages = packages_of(&(libraries | programs));
    let need = |name: &&str| {
        let package = packages.get(*name).and_then(|package| package.parse().ok());
        // What no lockfile can name is nothing that a loader or a shell finds.
        Some(SystemNeed { name: name.parse().ok()?, package })
    };
    SystemNeeds {
        libraries: libraries.iter().filter_map(need).collect(),
        programs: programs.iter().filter_map(need).collect(),
    }
}

/// What compiled files are linked to, and what they are called themselves.
#[derive(Debug, Default)]
struct Linked {
    wanted: BTreeSet<String>,
    brought: BTreeSet<String>,
}

impl Linked {
    /// Looks into a folder. What cannot be read is passed over: it is no file that works here.
    fn enter(&mut self, folder: &Path, deeper: usize) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => {
                    if let Some(deeper) = deeper.checked_sub(1) {
                        self.enter(&path, deeper);
                    }
                }
                Ok(_) if name.ends_with(".so") || name.contains(".so.") => {
                    self.brought.insert(name.into_owned());
                    self.add(&path);
                }
                _ => {}
            }
        }
    }

    fn add(&mut self, path: &Path) {
        if let Ok(Names { needed, own }) = names(path) {
            self.wanted.extend(needed);
            self.brought.extend(own);
        }
    }

    /// The libraries that none of the files is, and that not every system has.
    fn lacking(&self) -> impl Iterator<Item = &str> {
        let is_usual = |name: &str| OF_EVERY_SYSTEM.iter().any(|usual| name.starts_with(usual));
        self.wanted.difference(&self.brought).map(String::as_str).filter(move |name| !is_usual(name))
    }
}

/// The names in one compiled file.
#[derive(Debug, Default)]
struct Names {
    needed: Vec<String>,
    own: Option<String>,
}

/// Reads as little of a file as these names take; such files may have gigabytes.
fn names(path: &Path) -> io::Result<Names> {
    let data = ReadCache::new(File::open(path)?);
    let data = &data;
    let wrong = |error: object::Error| io::Error::new(io::ErrorKind::InvalidData, error);
    let header = FileHeader64::<Endianness>::parse(data).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    let sections = header.sections(endian, data).map_err(wrong)?;
    let table = sections.dynamic_table(endian, data).map_err(wrong)?;
    let mut names = Names::default();
    for entry in table.iter().filter(|entry| [DT_NEEDED, DT_SONAME].contains(&entry.tag)) {
        let name = String::from_utf8_lossy(table.string(entry).map_err(wrong)?).into_owned();
        match entry.tag {
            DT_NEEDED => names.needed.push(name),
            _ => names.own = Some(name),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A real compiled file, which is linked to these libraries.
    fn compile(file: &Path, own_name: &str, libraries: &[&str]) {
        fs::create_dir_all(file.parent().expect("a folder")).expect("own folder");
        let mut command = Command::new("cc");
        command.args(["-shared", "-x", "c", "/dev/null", "-x", "none", "-o"]).arg(file);
        command.arg(format!("-Wl,--no-as-needed,-soname,{own_name}")).args(libraries);
        assert!(command.status().expect("a compiler").success(), "{command:?}");
    }

    #[test]
    fn libraries_are_those_that_compiled_files_want_and_none_of_them_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |path: &str| folder.path().join(path);
        let private = at("site/x.libs/libprivate-1f3a.so.1");
        compile(&private, "libprivate-1f3a.so.1", &[]);
        compile(&at("here/libhere.so.1"), "libhere.so.1", &[]);
        let private = private.to_str().expect("a path");
        let gone = at("here/libhere.so.1");
        let gone = gone.to_str().expect("a path");
        compile(&at("site/x/_x.so"), "_x.so", &[private, "-l:libz.so.1", gone]);
        compile(&at("ComfyUI/custom_nodes/on/_on.so"), "_on.so", &["-l:libstdc++.so.6"]);
        compile(&at("ComfyUI/custom_nodes/off.disabled/_off.so"), "_off.so", &["-l:libcrypt.so.1"]);
        fs::write(at("site/x/broken.so"), "no library").expect("own folder");

        let needs = needs(&at("ComfyUI"), vec![at("site")], &["sh".to_owned()]).expect("found");
        let names: Vec<_> = needs.iter().map(|(kind, need)| (kind, need.name.as_str())).collect();
        // What this machine lacks, and works without, is not among them.
        assert_eq!(names, [("library", "libstdc++.so.6"), ("library", "libz.so.1"), ("program", "sh")]);
        let error = super::needs(&at("ComfyUI"), vec![], &["no-such-program".to_owned()]).expect_err("none");
        assert!(error.to_string().contains("`no-such-program` is said to be called"), "{error}");
    }

    #[test]
    fn programs_that_a_run_called_are_added_where_another_machine_would_find_them_by_name() {
        let mut needs = SystemNeeds::default();
        let sh = program("sh").expect("each system has one");
        let own = PathBuf::from("/home/author/.cache/downloaded/ffmpeg");
        let called = BTreeSet::from([sh, own]);
        for _ in 0..2 {
            add_programs(&mut needs, &called);
            assert_eq!(needs.programs.iter().map(|need| need.name.as_str()).collect::<Vec<_>>(), ["sh"]);
        }
    }
}
