//! What this process logs, as text.

use std::fmt::Write as _;
use std::sync::Mutex;

/// Keeps every field of every event and span, of this whole process.
#[derive(Debug, Default)]
pub struct Log(Mutex<String>, tokio::sync::Notify);

impl tracing::Subscriber for &'static Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut Fields(&self.0));
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut Fields(&self.0));
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        writeln!(self.0.lock().unwrap(), "target={}", event.metadata().target()).unwrap();
        event.record(&mut Fields(&self.0));
        self.1.notify_waiters();
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

struct Fields<'a>(&'a Mutex<String>);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let mut log = self.0.lock().unwrap();
        writeln!(log, "{field}={value:?}").unwrap();
    }
    fn record_error(&mut self, field: &tracing::field::Field, value: &(dyn std::error::Error + 'static)) {
        let mut error = Some(value);
        while let Some(cause) = error {
            self.record_debug(field, &format_args!("{cause} {cause:?}"));
            error = cause.source();
        }
    }
}

/// The log of this process, heard from the first call on.
pub fn install() -> &'static Log {
    static LOG: std::sync::OnceLock<&'static Log> = std::sync::OnceLock::new();
    LOG.get_or_init(|| {
        let log: &'static Log = Box::leak(Box::default());
        tracing::subscriber::set_global_default(log).unwrap();
        log
    })
}

/// The log of this thread alone, for as long as the guard is kept: a test's own, on a runtime of one thread.
pub fn of_this_thread() -> (&'static Log, tracing::subscriber::DefaultGuard) {
    let log: &'static Log = Box::leak(Box::default());
    (log, tracing::subscriber::set_default(log))
}

impl Log {
    /// Waits until this is in it.
    pub async fn until(&self, text: &str) {
        super::soon(text, async {
            loop {
                let event = self.1.notified();
                if self.text().contains(text) {
                    return;
                }
                event.await;
            }
        })
        .await;
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}
