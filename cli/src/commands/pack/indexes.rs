//! Which package indexes are asked for the files of what is installed: those that the command line names, else those of
//! pip and uv on this machine.
//!
//! Not here: how they are asked, and what of it is recorded; `node::workspace::lock` knows that.

use std::path::Path;

use clap::Args;
use node::workspace::lock::Locked;
use node::workspace::lock::lookup::indexes::{
    IndexUrl, PackageIndexes, Unresolved, look_up_packages, pip_indexes,
};

use crate::environment;

#[derive(Debug, Args)]
pub(crate) struct IndexArguments {
    /// The package index that is asked for the hashes of what is installed. Defaults to that of pip or uv on this
    /// machine, else https://pypi.org/simple.
    #[arg(long, value_name = "URL")]
    index_url: Option<IndexUrl>,
    /// A further one, such as an office's own; what is found there is recorded with it. Repeatable. Defaults to those
    /// of pip or uv on this machine.
    #[arg(long, value_name = "URL")]
    extra_index_url: Vec<IndexUrl>,
    /// Below which each build of torch has an index. Defaults to https://download.pytorch.org/whl.
    #[arg(long, value_name = "URL")]
    torch_index: Option<IndexUrl>,
}

impl IndexArguments {
    /// Asks for the hashes of all packages, and says which have none, and why.
    pub(super) async fn look_up(
        &self,
        locked: &mut Locked,
        comfyui: &Path,
        python: Option<&Path>,
    ) -> anyhow::Result<Vec<Unresolved>> {
        let indexes = self.indexes(pip_indexes(comfyui, python));
        let extra: Vec<String> = indexes.extra.iter().map(|index| format!("`{index}`, ")).collect();
        eprintln!("asks {}`{}` for the hashes of the packages", extra.concat(), indexes.main);
        let Locked { lockfile, package_files, notes, .. } = locked;
        Ok(look_up_packages(lockfile, &indexes, package_files, notes).await?)
    }

    fn indexes(&self, (pip, pip_extra): (Option<IndexUrl>, Vec<IndexUrl>)) -> PackageIndexes {
        let usual = PackageIndexes::default();
        let main = self.index_url.clone().or(pip).or_else(|| of_uv(environment::UV_INDEX).into_iter().next());
        let extra = [self.extra_index_url.clone(), pip_extra, of_uv(environment::UV_EXTRA_INDEXES)];
        PackageIndexes {
            main: main.unwrap_or(usual.main),
            extra: extra.into_iter().find(|indexes| !indexes.is_empty()).unwrap_or_default(),
            torch: self.torch_index.clone().unwrap_or(usual.torch),
        }
    }
}

/// The indexes that a variable of uv names, each perhaps as `name=URL`.
fn of_uv(variables: [&str; 2]) -> Vec<IndexUrl> {
    let set = variables.into_iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
    let url = |word: &str| word.split_once('=').map_or(word, |(_, url)| url).parse().ok();
    set.split_whitespace().filter_map(url).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_goes_before_pip() {
        let url = |text: &str| text.parse::<IndexUrl>().expect("a URL");
        let own = || (Some(url("https://pip.example/simple")), vec![url("https://extra.example/simple")]);
        let none = IndexArguments { index_url: None, extra_index_url: Vec::new(), torch_index: None };
        let of_pip = none.indexes(own());
        assert_eq!((Some(of_pip.main), of_pip.extra), own());
        let given = IndexArguments { index_url: Some(url("https://given.example/simple")), ..none };
        assert_eq!(given.indexes(own()).main, url("https://given.example/simple"));
    }
}
