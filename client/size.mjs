// The size of the library as a page loads it: minified and gzipped. The exit code is 1 above the limit.
import { build } from 'esbuild';
import { gzipSync } from 'node:zlib';

const most = 6 * 1024;
const { outputFiles: [file] } = await build({ entryPoints: ['src/index.ts'], bundle: true, minify: true, format: 'esm', target: 'es2022', write: false });
const size = gzipSync(file.contents, { level: 9 }).length;
console.log(`${size} bytes minified and gzipped, of ${most} at most`);
process.exit(size > most ? 1 : 0);
