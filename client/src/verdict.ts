/** What the end of a connection means for the next one. */
export interface Verdict {
  /** Whether there is to be one. */
  again: boolean;
  /** How long the gate wants the client to stay away, in milliseconds; 0: it does not say. */
  wait: number;
  /** Whether all clients are sent away at once, and had better come back spread. */
  crowd: boolean;
  /** Whether the credential was not good any more. */
  credential: boolean;
}

// Codes after which a connection may work that did not before: going away, lost, error behind the gate, restart, overload, heartbeat.
const passing = [1001, 1006, 1011, 1012, 1013, 3000, 3008];

/** Reads a close code and its reason as Portcullis means them. Codes that it does not know are the application's, and final. */
export function judge(code: number, reason: string): Verdict {
  const told = /\bretry in (\d+) s\b/.exec(reason);
  return {
    again: passing.includes(code),
    wait: told ? Number(told[1]) * 1000 : 0,
    crowd: code === 1001 || code === 1012 || code === 1013,
    credential: code === 3000,
  };
}
