// Package session keeps the live sessions: it finds them by id, subject, group, path and address, has their credentials verified
// again in time, renews them, sends to them, ends them, and tells what each was when it is over.
//
//	Open      the session of an upgrade: its lease runs, and it can be found, before its client knows its id
//	Start     both connections are the relay's; the session lasts until either side, a limit, its lease or Drain ends it
//	Release   if it comes to nothing instead
//	Renew     another token of the same subject lets it live on
//	List      those that a Filter chooses
//	Kick      has them end, and may keep their subject out
//	Send      pushes a message to them, and keeps it for those that come back
//
// The relay moves a session's bytes and knows nothing of tokens; the lease knows when to ask again and nothing of sockets. What
// they have in common is one [Session]. What a session keeps is data: who it is (Info) and by which credential (auth.Grant).
//
// # Invariants
//
//   - A session whose credential can end has its lease registered before the relay has it.
//   - Its lease and its slot are released exactly once: by Release before Start, by the relay's end after it.
//   - A push is to a session exactly once: before its start, while it is live, or out of the history while it is behind.
//   - Locks are taken in this order: publisher, history, registry, a session's control. The relay is asked for something under
//     publisher alone, for it asks back.
//   - Of its request it keeps copies of a few short strings, and the credential where that is to be verified again.
package session
