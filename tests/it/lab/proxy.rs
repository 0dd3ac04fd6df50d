//! Squid as a transparent proxy that makes its own certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::sleep;

use super::internet::Authority;
use super::rules::block;
use crate::harness::PATIENCE;

/// A running squid; it is killed with the test.
pub(super) struct Proxy {
    child: Child,
    folder: TempDir,
    name: String,
    /// How often it opened its ports.
    starts: usize,
    /// Who signs its certificates.
    pub(super) authority: Authority,
}

impl Proxy {
    /// Starts it here as `docs/firewalls.md` says, with `bump` in the place of its `ssl_bump` lines, if given; it trusts
    /// the internet's authority.
    pub(super) async fn start(internet: &Authority, bump: Option<&str>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("lab{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let authority = Authority::new("Proxy");
        let folder = TempDir::new().unwrap();
        let path = |file: &str| folder.path().join(file);
        let at = folder.path().display();
        let here =
            |text: &str| text.replace("/etc/squid/", &format!("{at}/")).replace("/var/spool/squid/", &format!("{at}/"));
        // Squid gives root up for the user `proxy`.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(path("inspection.pem"), format!("{}{}", authority.pem, authority.key_pem())).unwrap();
        fs::write(path("internet.pem"), &internet.pem).unwrap();
        let commands = block("security_file_certgen -c");
        let make = here(commands.lines().last().unwrap().trim_start_matches("# "));
        let made = Command::new("sh").args(["-ec", &make]).output().unwrap();
        assert!(made.status.success(), "{make}: {made:?}");
        let mut page = here(&block("https_port 3129"));
        if let Some(bump) = bump {
            page = page
                .lines()
                .filter(|line| !line.contains("step1") && !line.contains("ssl_bump"))
                .fold(bump.to_owned(), |text, line| format!("{text}{line}\n"));
        }
        // What Debian's own file has, or what a test needs.
        let config = format!(
            "http_port 127.0.0.1:3128\n\
             acl localnet src 10.0.0.0/8 fc00::/7\n\
             {page}\
             tls_outgoing_options cafile={at}/internet.pem\n\
             sslproxy_session_cache_size 0\n\
             cache deny all\n\
             cache_mem 0 MB\n\
             memory_cache_shared off\n\
             pinger_enable off\n\
             dns_nameservers 192.0.2.53\n\
             pid_filename none\n\
             access_log none\n\
             cache_log {at}/cache.log\n\
             coredump_dir {at}\n\
             shutdown_lifetime 0 seconds\n\
             visible_hostname gateway\n",
        );
        fs::write(path("squid.conf"), config).unwrap();
        let mut command = Command::new("squid");
        command.args(["-N", "-n", &name, "-f"]).arg(path("squid.conf")).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut proxy = Self { child, folder, name, starts: 1, authority };
        proxy.until_it_says("Accepting TPROXY intercepted", 1).await;
        proxy
    }

    /// Lets it read its configuration and lists anew, and waits until it has.
    pub(super) async fn reconfigure(&mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
        self.starts += 1;
        self.until_it_says("Accepting TPROXY intercepted", self.starts).await;
    }

    /// Waits until its log has these words so many times.
    async fn until_it_says(&mut self, words: &str, times: usize) {
        let mut log = String::new();
        for _ in 0..PATIENCE.as_millis() / 10 {
            log = fs::read_to_string(self.folder.path().join("cache.log")).unwrap_or_default();
            if log.matches(words).count() >= times {
                return;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "squid ended:\n{log}");
            sleep(Duration::from_millis(10)).await;
        }
        panic!("squid never said {words:?}:\n{log}");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Killed, it leaves its shared memory.
        for file in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if file.file_name().to_string_lossy().starts_with(&format!("{}-", self.name)) {
                let _ = fs::remove_file(file.path());
            }
        }
    }
}
