// What the tests of client libraries share: the gate between a library and its server, with a token endpoint that knows sesame.
//
//   PORTCULLIS=.../portcullis node --test
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';

const adminToken = 'an-operator-of-the-tests';

if (!process.env.PORTCULLIS) throw new Error('PORTCULLIS is not set; want the path of the program');

/** Has a server listen until the end of the test, and returns its host and port. */
export async function listen(t, server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => { server.close(); server.closeAllConnections(); });
  return `127.0.0.1:${server.address().port}`;
}

/** Starts a gate in front of those targets. */
export async function startGate(t, targets, settings = {}) {
  const endpoint = await listen(t, createServer((request, response) => {
    const known = new URL(request.url, 'http://endpoint').searchParams.get('token') === 'sesame';
    response.writeHead(known ? 200 : 401, { 'X-Auth-Subject': 'ana' }).end(known ? '1' : '0');
  }));
  const program = spawn(process.env.PORTCULLIS, {
    env: {
      LISTEN_ADDR: '127.0.0.1:0', ADMIN_ADDR: '127.0.0.1:0', ADMIN_TOKEN: adminToken, RATE_UPGRADES_PER_IP: '0', RATE_AUTH_FAILURES_PER_IP: '0',
      UPSTREAM_URL: targets.map((target) => `ws://${target}`).join(' '), AUTH_URL: `http://${endpoint}`, DRAIN_TIMEOUT: '2s', CLOSE_TIMEOUT: '1s', ...settings,
    },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const ended = once(program, 'close');
  t.after(async () => { program.kill('SIGTERM'); await ended; });
  let log = '';
  const listens = new Promise((resolve) => {
    program.stderr.setEncoding('utf8').on('data', (chunk) => {
      log += chunk;
      const at = /"msg":"listening".*"addr":"([^"]*)".*"admin":"([^"]*)"/.exec(log);
      if (at) resolve({ host: at[1], admin: at[2] });
    });
  });
  const at = await Promise.race([listens, ended.then(([code]) => { throw new Error(`the gate ended with ${code}:\n${log}`); })]);
  return {
    host: at.host,
    /** Ends Ana's sessions, and returns how many there were. */
    async kick() {
      const response = await fetch(`http://${at.admin}/api/sessions?subject=ana`, { method: 'DELETE', headers: { Authorization: `Bearer ${adminToken}` } });
      if (!response.ok) throw new Error(`kick: ${response.status} ${await response.text()}`);
      return response.json();
    },
  };
}

/** The arguments of the next such event of an emitter. */
export function next(emitter, name) {
  return new Promise((resolve) => { emitter.once(name, (...args) => resolve(args)); });
}

/** Waits until a condition holds. */
export async function until(condition, what) {
  const deadline = Date.now() + 20_000;
  while (!await condition()) {
    if (Date.now() > deadline) throw new Error(`in vain: ${what}`);
    await new Promise((resolve) => { setTimeout(resolve, 10); });
  }
}
