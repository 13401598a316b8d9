// Two users with three devices write to each other, encrypted, by docs/e2e/nexus-e2e.js and the real socket.io-client.
// Usage: node e2e.mjs BASE TOKENS SECRET LIBRARY. Exit code 0: all was read by whom it was for, and by nobody else.
import { io } from 'socket.io-client';

const [base, tokenText, secret, library] = process.argv.slice(2);
const tokens = JSON.parse(tokenText);
const { createDevice, addPrekeys, directory, encrypt, decrypt, fingerprint } = await import(library);
function fail(message) { process.stderr.write(message + '\n'); process.exit(1); }
process.on('unhandledRejection', (e) => fail(e.stack));
setTimeout(() => fail('took too long'), 30000).unref();

async function device(user, prekeys) {
  const d = await createDevice(prekeys), api = directory(base, () => tokens[user]);
  await api.publish(d);
  for (let n = 0; n < 500 && (await api.left(d)) !== prekeys; n++) await new Promise((r) => setTimeout(r, 10));
  const socket = io(base + '/ws', { query: { userId: user, token: tokens[user] }, forceNew: true });
  const seen = [];
  for (const e of ['message:new', 'message:sent']) socket.on(e, (m) => { if (m.encrypted) seen.push(m); });
  await new Promise((r) => socket.once('connected', r));
  return { user, d, api, socket, seen };
}
const phone = await device('alice', 5), laptop = await device('alice', 5), bob = await device('bob', 2);

async function send(from, to, text) {
  const ack = await from.socket.emitWithAck('sendMessage', { receiverId: to, encrypted: await encrypt(from.d, from.user, to, text, from.api) });
  if (!ack.ok) fail(JSON.stringify(ack));
  return ack.id;
}
async function read(at, id) {
  for (let n = 0; n < 1000; n++) {
    const m = at.seen.find((m) => m.id === id);
    if (m) return decrypt(at.d, at.user, m, at.api);
    await new Promise((r) => setTimeout(r, 10));
  }
  fail(`${at.user} did not get ${id}`);
}
// Four messages: bob's two one-time keys serve the first two, then his identity key alone.
for (let n = 0; n < 4; n++) {
  const id = await send(phone, 'bob', `${secret} ${n}`);
  for (const at of [bob, laptop]) if ((await read(at, id)) !== `${secret} ${n}`) fail(`${at.user} read something else`);
  const used = bob.seen.find((m) => m.id === id).encrypted.to[bob.d.id].prekey;
  if ((used !== null) !== n < 2) fail(`message ${n} used one-time key ${used}`);
  if (used && bob.d.prekeys.has(used)) fail('a one-time key is still there after its use');
}
await addPrekeys(bob.d, 3);
await bob.api.publish(bob.d);
const answer = await send(bob, 'alice', secret + ' answer');
for (const at of [phone, laptop]) if ((await read(at, answer)) !== secret + ' answer') fail('the answer');

// What must not work: another device's copy, a changed message, another sender, a one-time key twice, another identity.
async function refuses(what, fn) { try { await fn(); } catch { return; } fail(what + ' was accepted'); }
const last = phone.seen.find((m) => m.id === answer);
await refuses('a message read by a device it is not for', async () => decrypt((await createDevice(0)), 'alice', last, phone.api));
await refuses('a one-time key used twice', () => decrypt(phone.d, 'alice', last, phone.api));
const fresh = await send(bob, 'alice', 'once more');
await read(laptop, fresh);
while (!phone.seen.find((m) => m.id === fresh)) await new Promise((r) => setTimeout(r, 10));
const whole = phone.seen.find((m) => m.id === fresh), copy = () => structuredClone(whole);
await refuses('a changed text', () => { const m = copy(), t = m.encrypted.to[phone.d.id]; t.text = btoa(atob(t.text).split('').reverse().join('')); return decrypt(phone.d, 'alice', m, phone.api); });
await refuses('another sender', () => { const m = copy(); m.senderId = 'carol'; return decrypt(phone.d, 'alice', m, phone.api); });
await refuses('another receiver', () => { const m = copy(); m.receiverId = 'carol'; return decrypt(phone.d, 'alice', m, phone.api); });
const mallory = await createDevice(0);
await refuses('a changed identity key', async () => { const m = copy(); m.encrypted.from.identityKey = (await encrypt(mallory, 'bob', 'alice', 'x', phone.api)).from.identityKey; return decrypt(phone.d, 'alice', m, phone.api); });
if ((await decrypt(phone.d, 'alice', whole, phone.api)) !== 'once more') fail('the message itself');
if (!/^(\d{5} ){11}\d{5}$/.test(await fingerprint(whole.encrypted.from.identityKey))) fail('fingerprint');
await bob.api.remove(bob.d.id);
for (let n = 0; (await phone.api.devices('bob')).length > 0; n++) { if (n > 500) fail('the device was not removed'); await new Promise((r) => setTimeout(r, 10)); }
await refuses('sending to a user without devices', () => encrypt(phone.d, 'alice', 'bob', 'x', phone.api));
for (const d of [phone, laptop, bob]) d.socket.disconnect();
process.stdout.write('e2e: all seen\n');
process.exit(0);
