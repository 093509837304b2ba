//! Plain counters of one worker. Only the engine thread writes them; readers get a copy.

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters and gauges since the worker started.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct Stats { $($(#[$doc])* pub $name: u64,)* }

        impl Stats {
            /// Each figure with its name, in a fixed order.
            #[must_use]
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

stats! {
    /// Clients connected now, log-ins included.
    clients,
    /// Clients that wait for a server now.
    waiting,
    /// Clients pinned now.
    pinned,
    /// Server connections held now, under way ones included.
    servers,
    /// Clients accepted.
    clients_accepted,
    /// Log-ins that succeeded.
    logins,
    /// Log-ins that failed.
    login_failures,
    /// Transactions that ended.
    transactions,
    /// Servers given to a client.
    borrows,
    /// Waits that ended in the borrow timeout.
    borrow_timeouts,
    /// Server connections that were made.
    server_logins,
    /// Server connections that could not be made.
    server_failures,
    /// Servers reset for the next client.
    resets,
    /// Servers that were given a client's session variables.
    restores,
    /// Pins begun.
    pins,
    /// CancelRequests sent.
    cancels,
    /// Servers handed over to another worker.
    handovers,
    /// Protocol violations by clients.
    client_violations,
    /// Protocol violations by servers.
    server_violations,
}
