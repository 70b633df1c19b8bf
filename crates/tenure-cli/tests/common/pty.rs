//! A pseudo-terminal, and what a person sees on it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    num::NonZeroU16,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::{
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use super::common::{eventually, kill};

/// A command on a terminal of its own. It is killed when this is dropped.
pub(crate) struct Terminal {
    child: Child,
    master: File,
    output: Arc<Mutex<Output>>,
}

struct Output {
    parser: vt100::Parser,
    bytes: Vec<u8>,
}

impl Terminal {
    /// Starts a command as the leader of a session with a terminal of this size. No shell is in the session.
    pub(crate) fn start(command: &Command, columns: u16, rows: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&master).unwrap();
        tcsetwinsize(&master, winsize(columns, rows)).unwrap();
        let slave = || {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            ioctl_tiocgptpeer(&master, flags).unwrap()
        };
        // It becomes the command, so that the process id is the command's.
        let mut on_terminal = Command::new("setsid");
        on_terminal.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => on_terminal.env(name, value),
                None => on_terminal.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            on_terminal.current_dir(directory);
        }
        if !command.get_envs().any(|(name, _)| name == "TERM") {
            on_terminal.env("TERM", "xterm-256color");
        }
        if !command.get_envs().any(|(name, _)| name == "NO_COLOR") {
            on_terminal.env_remove("NO_COLOR");
        }
        let child = on_terminal.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
        drop(on_terminal);
        let parser = vt100::Parser::new(nonzero(rows), nonzero(columns), 0);
        let output = Arc::new(Mutex::new(Output { parser, bytes: Vec::new() }));
        let master = File::from(master);
        let (mut reader, shown) = (master.try_clone().unwrap(), Arc::clone(&output));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error says that the last process has closed the terminal.
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                shown.parser.process(&buffer[..read]);
                shown.bytes.extend_from_slice(&buffer[..read]);
            }
        });
        Self { child, master, output }
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows that a person sees, without spaces at their ends.
    pub(crate) fn rows(&self) -> Vec<String> {
        let output = self.output();
        let screen = output.parser.screen();
        let (_, columns) = screen.size();
        screen.rows(0, columns.get()).map(|row| row.trim_end().to_owned()).collect()
    }

    /// Waits for a row that contains this text, and returns it.
    pub(crate) fn wait_for_row(&self, text: &str) -> String {
        self.wait_until(&format!("a row with {text:?}"), |rows| {
            rows.iter().find(|row| row.contains(text)).cloned()
        })
    }

    /// Waits for a row that begins with this text, and returns it.
    pub(crate) fn wait_for_row_that_begins(&self, text: &str) -> String {
        self.wait_until(&format!("a row that begins with {text:?}"), |rows| {
            rows.iter().find(|row| row.starts_with(text)).cloned()
        })
    }

    /// Waits until the rows are as expected.
    pub(crate) fn wait_until<T>(&self, what: &str, mut find: impl FnMut(&[String]) -> Option<T>) -> T {
        let mut last = Vec::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, || {
                last = self.rows();
                find(&last)
            })
        }));
        found.unwrap_or_else(|_| panic!("{what}: {last:#?}"))
    }

    /// All that was written.
    pub(crate) fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.output().bytes).into_owned()
    }

    /// Whether the cell with this text is shown in inverse.
    pub(crate) fn is_inverse(&self, text: &str) -> bool {
        let rows = self.rows();
        let row = rows.iter().position(|row| row.contains(text)).unwrap();
        let output = self.output();
        output.parser.screen().cell(row.try_into().unwrap(), 0).unwrap().inverse()
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        self.output().parser.screen_mut().set_size(nonzero(rows), nonzero(columns));
        tcsetwinsize(&self.master, winsize(columns, rows)).unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        kill(name, self.child.id());
    }

    /// Whether lines and echo are on, the cursor is visible, and the screen is the one before.
    pub(crate) fn is_restored(&self) -> bool {
        let modes = tcgetattr(&self.master).unwrap().local_modes;
        let output = self.output();
        let screen = output.parser.screen();
        let has_modes = modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::IEXTEN);
        has_modes && !screen.alternate_screen() && !screen.hide_cursor()
    }

    /// Waits until the command has ended, and its output was read. Returns its exit code.
    pub(crate) fn code(&mut self) -> Option<i32> {
        eventually("the command ends", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nonzero(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
