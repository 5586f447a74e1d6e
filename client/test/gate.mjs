// A gate for the tests: the program itself, with its bundled backend.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';

export const adminToken = 'an-operator-of-the-tests';
export const secret = 'a secret of thirty-two bytes or more';

if (!process.env.PORTCULLIS) throw new Error('PORTCULLIS is not set; want the path of the program');

/** Starts a gate. Its environment is these settings alone. */
export async function startGate(t, settings = {}) {
  const program = spawn(process.env.PORTCULLIS, {
    env: {
      LISTEN_ADDR: '127.0.0.1:0', ADMIN_ADDR: '127.0.0.1:0', ADMIN_TOKEN: adminToken, RATE_UPGRADES_PER_IP: '0', RATE_AUTH_FAILURES_PER_IP: '0',
      AUTH_TOKEN_FROM: 'query:token,header:Authorization,protocol:bearer', DRAIN_TIMEOUT: '2s', CLOSE_TIMEOUT: '1s', ...settings,
    },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const ended = once(program, 'close');
  let log = '';
  const listens = new Promise((resolve) => {
    program.stderr.setEncoding('utf8').on('data', (chunk) => {
      log += chunk;
      const at = /"msg":"listening".*"addr":"([^"]*)".*"admin":"([^"]*)"/.exec(log);
      if (at) resolve({ front: at[1], admin: at[2] });
    });
  });
  const addresses = await Promise.race([listens, ended.then(([code]) => { throw new Error(`the gate ended with ${code}:\n${log}`); })]);
  const gate = {
    ...addresses,
    url: `ws://${addresses.front}/`,
    async stop() {
      program.kill('SIGTERM');
      await ended;
    },
    /** Calls the operator's API. */
    async api(method, path, body) {
      const response = await fetch(`http://${addresses.admin}/api${path}`, {
        method, body, headers: { Authorization: `Bearer ${adminToken}`, 'Content-Type': 'text/plain' },
      });
      const text = await response.text();
      assert.equal(response.status, 200, text);
      return JSON.parse(text);
    },
  };
  t.after(() => gate.stop());
  return gate;
}

/** Signs a token that ends after so many seconds. */
export function sign(seconds, subject = 'ana') {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const input = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub: subject, exp: Math.floor(Date.now() / 1000) + seconds })}`;
  return `${input}.${createHmac('sha256', secret).update(input).digest('base64url')}`;
}

/** The next such event. The end, where that was not meant, is an error. */
export function next(socket, name) {
  return new Promise((resolve, reject) => {
    socket.addEventListener(name, resolve, { once: true });
    if (name !== 'close') socket.addEventListener('close', ({ code, reason }) => reject(new Error(`closed with ${code} ${reason}, want ${name}`)), { once: true });
  });
}

export const answer = (text) => `MENSAGEM: Você enviou "${text}"`;

export async function echoes(socket, text) {
  const message = next(socket, 'message');
  assert.equal(socket.send(text), true);
  assert.equal((await message).data, answer(text));
}
