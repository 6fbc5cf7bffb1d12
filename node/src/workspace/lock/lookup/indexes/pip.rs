//! The indexes that pip asks on this machine, by pip's own word.
//!
//! Not here: what a command line says instead.

use std::path::Path;
use std::process::{Command, Stdio};

use super::super::super::packages::program;
use super::IndexUrl;

/// The indexes of the pip of a ComfyUI folder's Python: that of everything, where it is not the usual one, and further
/// ones. None where it has no pip.
pub fn pip_indexes(comfyui: &Path, python: Option<&Path>) -> (Option<IndexUrl>, Vec<IndexUrl>) {
    let listed = program(comfyui, python).and_then(|program| {
        let mut command = Command::new(program);
        command.args(["-m", "pip", "--disable-pip-version-check", "config", "list"]);
        command.stdin(Stdio::null()).stderr(Stdio::null()).output()
    });
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    read(&listed.unwrap_or_default())
}

/// Reads what `pip config list` prints: `global.index-url='https://…'`; the later of two stands.
fn read(listed: &str) -> (Option<IndexUrl>, Vec<IndexUrl>) {
    let (mut main, mut extra) = (None, Vec::new());
    for line in listed.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        // As Python writes a text, with its line breaks.
        let value = value.trim().trim_matches(['\'', '"']).replace("\\n", " ");
        let mut urls = value.split_whitespace().filter_map(|url| url.parse().ok());
        match key.rsplit('.').next() {
            Some("index-url") => main = urls.next().or(main),
            Some("extra-index-url") => extra = urls.collect(),
            _ => {}
        }
    }
    (main, extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_of_pip_are_read_as_it_prints_them() {
        let url = |text: &str| text.parse::<IndexUrl>().expect("a URL");
        let listed = ":env:.disable-pip-version-check='1'\nglobal.index-url='https://pypi.example.org/simple/'\n\
                      site.extra-index-url='\\nhttps://a.example/simple\\nhttps://me:secret@b.example/simple'\n\
                      install.index-url='https://own.example/simple'\n";
        let extra = vec![url("https://a.example/simple"), url("https://me:secret@b.example/simple")];
        assert_eq!(read(listed), (Some(url("https://own.example/simple")), extra));
        assert_eq!(read(""), (None, Vec::new()));
    }
}
