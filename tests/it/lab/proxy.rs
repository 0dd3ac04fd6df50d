//! Squid as a transparent proxy that makes its own certificates.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::sleep;

use super::internet::Authority;
use crate::harness::PATIENCE;

/// Look at the client's first words, then inspect.
pub(super) const BUMP: &str = "acl step1 at_step SslBump1\nssl_bump peek step1\nssl_bump bump all\n";

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
    /// Starts it here; it trusts the internet's authority. `bump` are the lines that say what it inspects.
    pub(super) async fn start(internet: &Authority, bump: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("lab{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let authority = Authority::new("Proxy");
        let folder = TempDir::new().unwrap();
        let path = |file: &str| folder.path().join(file);
        // Squid gives root up for the user `proxy`.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(path("proxy.pem"), format!("{}{}", authority.pem, authority.key_pem())).unwrap();
        fs::write(path("internet.pem"), &internet.pem).unwrap();
        let helper = "/usr/lib/squid/security_file_certgen";
        let made = Command::new(helper).arg("-c").arg("-s").arg(path("made")).args(["-M", "4MB"]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        assert!(Command::new("chown").args(["-R", "proxy"]).arg(path("made")).status().unwrap().success());
        let at = folder.path().display();
        let port = format!("ssl-bump tls-cert={at}/proxy.pem generate-host-certificates=on");
        let config = format!(
            "http_port 127.0.0.1:3128\n\
             https_port 3129 intercept {port}\n\
             https_port 3130 tproxy {port}\n\
             sslcrtd_program {helper} -s {at}/made -M 4MB\n\
             sslcrtd_children 4 startup=1 idle=1\n\
             sslproxy_session_cache_size 0\n\
             tls_outgoing_options cafile={at}/internet.pem\n\
             {bump}\
             http_access allow all\n\
             cache deny all\n\
             cache_mem 0 MB\n\
             memory_cache_shared off\n\
             pinger_enable off\n\
             dns_nameservers {}\n\
             pid_filename none\n\
             access_log none\n\
             cache_log {at}/cache.log\n\
             coredump_dir {at}\n\
             shutdown_lifetime 0 seconds\n\
             visible_hostname gateway\n",
            Ipv4Addr::new(192, 0, 2, 53)
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
