//! A file carried from one process to another with a ticket and no farm.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use farm_tests::{Process, eventually, is_root, skipped};
use nix::sys::signal::Signal;
use protocol::blob_ticket::BlobTicket;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

const PIECE: u64 = 1 << 20;

/// A file that is shared, and the folder in which it is fetched.
struct Carrying {
    folder: TempDir,
    file: PathBuf,
    sharer: Process,
    ticket: String,
}

impl Carrying {
    async fn start(size: u64) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("model.safetensors");
        std::fs::write(&file, bytes(size))?;
        let arguments = ["blob", "share", text(&file), "--listen", "127.0.0.1:0"];
        let command = Process::comfy_farm(folder.path(), &arguments);
        let mut sharer = Process::start(command, &folder.path().join("share.log"))?;
        let ticket = sharer.line().await?;
        assert!(ticket.starts_with("blob1"), "{ticket}");
        Ok(Self { folder, file, sharer, ticket })
    }

    fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn getter(&self, output: &Path, more: &[&str]) -> anyhow::Result<Process> {
        let arguments = [&get(&self.ticket, output)[..], more].concat();
        let log = output.with_extension("log");
        Process::start(Process::comfy_farm(self.folder.path(), &arguments), &log)
    }

    /// Lets the sharer run in short turns until a first part of the file has come here, and leaves it frozen.
    async fn send_a_part(&self, output: &Path) -> anyhow::Result<()> {
        eventually(|| async {
            self.sharer.signal(Signal::SIGCONT);
            sleep(Duration::from_millis(20)).await;
            self.sharer.signal(Signal::SIGSTOP);
            Ok((pieces(output) > 0).then_some(()))
        })
        .await
    }

    fn assert_is_at(&self, output: &Path) -> anyhow::Result<()> {
        assert!(std::fs::read(&self.file)? == std::fs::read(output)?, "`{}` differs", output.display());
        Ok(())
    }
}

fn get<'a>(ticket: &'a str, output: &'a Path) -> [&'a str; 7] {
    ["blob", "get", ticket, "--output", text(output), "--listen", "127.0.0.1:0"]
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Bytes of which no two pieces are the same.
fn bytes(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    bytes.chunks_mut(PIECE as usize).zip(1_u8..).for_each(|(piece, number)| piece.fill(number));
    bytes
}

fn hidden(output: &Path) -> PathBuf {
    let name = output.file_name().expect("a file").to_str().expect("UTF-8");
    output.with_file_name(format!(".{name}.comfy-farm"))
}

/// How many pieces an unfinished `get` has marked as written.
fn pieces(output: &Path) -> u64 {
    let entries = std::fs::read_dir(hidden(output).join("partial"));
    let marks = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let marks = marks.filter(|path| path.extension().is_some_and(|extension| extension == "pieces"));
    let bits = marks.filter_map(|path| std::fs::read(path).ok()).flatten().map(u8::count_ones);
    bits.map(u64::from).sum()
}

/// Fails a `get` and gives its words.
async fn refused(command: &mut tokio::process::Command) -> anyhow::Result<(Option<i32>, String)> {
    let output = command.env("COMFY_FARM_LOG", "error").stdin(Stdio::null()).output().await?;
    assert!(!output.status.success());
    assert_eq!(output.stdout, b"");
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[tokio::test]
async fn file_is_carried_by_its_ticket_and_nothing_is_left_beside_it() -> anyhow::Result<()> {
    let mut carrying = Carrying::start(40_000_003).await?;
    let output = carrying.output("out.bin");
    let mut getter = carrying.getter(&output, &[])?;
    assert_eq!(getter.rest().await?, [format!("done {}", output.display())]);
    assert!(getter.wait().await?.success());
    carrying.assert_is_at(&output)?;
    assert!(!hidden(&output).exists());
    assert!(carrying.sharer.log().contains("this machine only"), "{}", carrying.sharer.log());
    carrying.sharer.signal(Signal::SIGTERM);
    assert_eq!(carrying.sharer.rest().await?, [] as [String; 0], "the ticket is alone on stdout");
    assert!(carrying.sharer.wait().await?.success());
    Ok(())
}

/// A path of its own to a sharer, slow enough to kill somebody in the middle, that counts what it carries.
struct CountingPath {
    address: SocketAddr,
    carried: Arc<AtomicU64>,
    _guard: DropGuard,
}

impl CountingPath {
    const BYTES_PER_SECOND: u64 = 32 * PIECE;
    const PART: usize = 64 << 10;

    async fn to(sharer: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, carried) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
        let (stop, counter) = (CancellationToken::new(), Arc::clone(&carried));
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((getter, _)) = listener.accept().await {
                tokio::spawn(Self::carry(getter, sharer, Arc::clone(&counter)));
            }
        }));
        Ok(Self { address, carried, _guard: stop.drop_guard() })
    }

    async fn carry(getter: TcpStream, sharer: SocketAddr, carried: Arc<AtomicU64>) -> std::io::Result<()> {
        let (mut asked, mut answering) = getter.into_split();
        let (mut answers, mut asking) = TcpStream::connect(sharer).await?.into_split();
        let asks = async { tokio::io::copy(&mut asked, &mut asking).await.map(drop) };
        let answers = async {
            let mut part = vec![0; Self::PART];
            loop {
                let length = answers.read(&mut part).await?;
                if length == 0 {
                    return answering.shutdown().await;
                }
                answering.write_all(&part[..length]).await?;
                carried.fetch_add(length as u64, Ordering::Relaxed);
                sleep(Duration::from_secs_f64(length as f64 / Self::BYTES_PER_SECOND as f64)).await;
            }
        };
        tokio::try_join!(asks, answers).map(drop)
    }

    fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn get_that_is_killed_again_and_again_fetches_a_range_again_each_time_at_most() -> anyhow::Result<()> {
    let size = 96 * PIECE;
    let carrying = Carrying::start(size).await?;
    let mut ticket: BlobTicket = carrying.ticket.parse()?;
    let path = CountingPath::to(ticket.addresses[0]).await?;
    ticket.addresses = vec![path.address];
    let (ticket, output) = (ticket.to_string(), carrying.output("out.bin"));
    let getter = || {
        let command = Process::comfy_farm(carrying.folder.path(), &get(&ticket, &output));
        Process::start(command, &output.with_extension("log"))
    };
    let kills = [size / 7, size / 3, size * 3 / 5];
    for kill_at in kills {
        let mut getter = getter()?;
        eventually(|| async { Ok((path.carried() >= kill_at).then_some(())) }).await?;
        getter.kill().await;
        assert!(!output.exists());
    }
    let mut getter = getter()?;
    assert_eq!(getter.line().await?, format!("done {}", output.display()));
    assert!(getter.wait().await?.success());
    carrying.assert_is_at(&output)?;
    // A range takes half a second; the hash tree and what encrypts add a hundredth.
    let range = CountingPath::BYTES_PER_SECOND / 2;
    let carried = path.carried();
    assert!(carried >= size, "{carried} bytes of {size} were counted");
    let most = size + size / 100 + range * kills.len() as u64;
    assert!(carried <= most, "{carried} bytes crossed for {size}, where {most} are the most");
    Ok(())
}

#[tokio::test]
async fn rest_comes_from_another_getter_when_the_sharer_dies() -> anyhow::Result<()> {
    let mut carrying = Carrying::start(160 * PIECE).await?;
    let (first, second) = (carrying.output("first.bin"), carrying.output("second.bin"));
    let mut serving = carrying.getter(&first, &["--keep-serving"])?;
    assert_eq!(serving.line().await?, format!("done {}", first.display()));
    carrying.sharer.signal(Signal::SIGSTOP);
    let mut getter = carrying.getter(&second, &["--json"])?;
    // Frozen as well, so that the first part is the sharer's and not already its own.
    serving.signal(Signal::SIGSTOP);
    carrying.send_a_part(&second).await?;
    carrying.sharer.kill().await;
    serving.signal(Signal::SIGCONT);

    let done: Value = getter.json().await?;
    assert!(getter.wait().await?.success());
    carrying.assert_is_at(&second)?;
    assert_eq!(done["from"].as_array().map(Vec::len), Some(2), "{done}");
    serving.signal(Signal::SIGTERM);
    assert!(serving.wait().await?.success());
    carrying.assert_is_at(&first)?;
    assert!(!hidden(&first).exists());
    Ok(())
}

#[tokio::test]
async fn file_that_changed_is_not_carried_and_both_ends_name_it() -> anyhow::Result<()> {
    let carrying = Carrying::start(3 * PIECE).await?;
    std::fs::write(&carrying.file, vec![0; 3 * PIECE as usize])?;
    let output = carrying.output("out.bin");
    let mut command = Process::comfy_farm(carrying.folder.path(), &get(&carrying.ticket, &output));
    let (code, words) = refused(&mut command).await?;
    assert_eq!(code, Some(10), "{words}");
    assert!(words.contains("model.safetensors") && words.contains("does not hold the blob"), "{words}");
    assert!(!output.exists());
    let log = carrying.sharer.log();
    assert!(log.contains("no longer served") && log.contains("model.safetensors"), "{log}");
    Ok(())
}

#[tokio::test]
async fn wrong_ticket_is_refused_with_what_is_wrong() -> anyhow::Result<()> {
    let carrying = Carrying::start(1000).await?;
    let output = carrying.output("out.bin");
    let check = async |ticket: &str, expected: &str| -> anyhow::Result<()> {
        let mut command = Process::comfy_farm(carrying.folder.path(), &get(ticket, &output));
        let (code, words) = refused(&mut command).await?;
        assert_eq!(code, Some(10), "{words}");
        assert!(words.contains(expected), "{words}");
        Ok(())
    };
    check("farm1aaaa", "`farm1aaaa` is neither a ticket (`blob1…`").await?;
    check(&carrying.ticket[..carrying.ticket.len() - 4], "damaged").await?;
    check("@no-such-file", "no-such-file").await?;
    // The same sharer, but another farm: its gate stays shut.
    let ticket: BlobTicket = carrying.ticket.parse()?;
    let forged = BlobTicket::new(ticket.blob, &ticket.file_name, ticket.peer, ticket.addresses, [1; 32]);
    check(&forged.to_string(), "may not accept our membership").await?;
    assert!(!output.exists() && !hidden(&output).exists());
    Ok(())
}

#[tokio::test]
async fn full_disk_is_told_with_both_numbers() -> anyhow::Result<()> {
    if !is_root() {
        skipped("a file system of 8 MiB is mounted by root only");
        return Ok(());
    }
    let carrying = Carrying::start(20 * PIECE).await?;
    let small = carrying.output("small");
    std::fs::create_dir(&small)?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs", text(&small)])
        .status()?;
    assert!(mounted.success());
    let output = small.join("out.bin");
    let mut command = Process::comfy_farm(carrying.folder.path(), &get(&carrying.ticket, &output));
    let result = refused(&mut command).await;
    assert!(std::process::Command::new("umount").arg(&small).status()?.success());
    let (_, words) = result?;
    assert!(words.contains("20971520") && words.contains("free"), "{words}");
    Ok(())
}

#[tokio::test]
async fn device_or_missing_file_is_a_wrong_input() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    for (file, expected) in [
        (PathBuf::from("/dev/null"), "neither a file nor a folder"),
        (folder.path().join("no"), "cannot be read"),
    ] {
        let mut command = Process::comfy_farm(folder.path(), &["blob", "share", text(&file)]);
        let (code, words) = refused(&mut command).await?;
        assert_eq!(code, Some(7), "{words}");
        assert!(words.contains(expected), "{words}");
    }
    Ok(())
}

#[tokio::test]
async fn folder_is_carried_by_its_ticket_and_appears_as_a_whole() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("wheels");
    for index in 0..300_u32 {
        let path = source.join(format!("{}/{index}.whl", index % 3));
        std::fs::create_dir_all(path.parent().expect("it is below"))?;
        std::fs::write(path, bytes(u64::from(index) * 100))?;
    }
    std::fs::write(source.join("large.bin"), bytes(3 * PIECE + 1))?;
    let arguments = ["blob", "share", text(&source), "--listen", "127.0.0.1:0"];
    let log = folder.path().join("share.log");
    let mut sharer = Process::start(Process::comfy_farm(folder.path(), &arguments), &log)?;
    let ticket = sharer.line().await?;
    let output = folder.path().join("copy");
    let log = folder.path().join("get.log");
    let mut getter = Process::start(Process::comfy_farm(folder.path(), &get(&ticket, &output)), &log)?;
    assert_eq!(getter.line().await?, format!("done {}", output.display()));
    assert!(getter.wait().await?.success());
    let same = std::process::Command::new("diff").arg("-r").args([&source, &output]).status()?;
    assert!(same.success());
    assert!(!hidden(&output).exists());

    let mut again = Process::comfy_farm(folder.path(), &get(&ticket, &output));
    let (code, words) = refused(&mut again).await?;
    assert_eq!(code, Some(2), "{words}");
    Ok(())
}
