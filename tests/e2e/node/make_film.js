// Makes a film with nothing but the committed .proto files: what a team with another language does on its first day.
// Usage: node make_film.js ADDRESS PROTOS_FOLDER IDEA SCENE_COUNT FILE. Prints one JSON line.
'use strict';
const crypto = require('node:crypto');
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, protos, idea, sceneCount, file] = process.argv.slice(2);
const definition = loader.loadSync('halfreel/gateway/v1/gateway.proto', {
  includeDirs: [protos], longs: Number, enums: String, defaults: false, oneofs: true,
});
const { GatewayService } = grpc.loadPackageDefinition(definition).halfreel.gateway.v1;
const client = new GatewayService(address, grpc.credentials.createInsecure());

const unary = (method, request) => new Promise((resolve, reject) =>
  client[method](request, (error, response) => (error ? reject(error) : resolve(response))));

async function main() {
  const refusal = await unary('CreateFilm', { requestId: 'empty', idea: '' }).catch((error) => error);
  const request = {
    requestId: crypto.randomUUID(), idea, settings: { sceneCount: Number(sceneCount), sceneSeconds: 1, stepCount: 2, seed: 7 },
  };
  const { film } = await unary('CreateFilm', request);
  const kinds = [];
  for await (const message of client.WatchFilm({ filmId: film.filmId, afterSequenceNumber: 0 })) kinds.push(message.event);
  const ended = (await unary('GetFilm', { filmId: film.filmId })).film;
  const pieces = [];
  for await (const piece of client.ReadVideo({ filmId: film.filmId })) pieces.push(piece.data);
  const video = Buffer.concat(pieces);
  fs.writeFileSync(file, video);
  console.log(JSON.stringify({
    refusalCode: refusal.code, state: ended.state, scenes: ended.scenes.length, kinds,
    told: ended.video.sha256, read: crypto.createHash('sha256').update(video).digest('hex'),
  }));
  client.close();
}

main().catch((error) => { console.error(error); process.exit(1); });
