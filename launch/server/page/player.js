// Plays a video while it is being made: whole fragments of MP4 go to a media source as they come.

import { key, send } from "./api.js";

const AHEAD = 120; // seconds of video that are fetched before they are shown
const BEHIND = 60; // seconds that stay after they were shown

// Such as avc1.64000a: the three bytes behind the version in the header's box avcC.
function codec(header) {
  for (let i = 0; i + 8 < header.length; i++) {
    if (header[i] === 0x61 && header[i + 1] === 0x76 && header[i + 2] === 0x63 && header[i + 3] === 0x43) {
      const hex = [...header.slice(i + 5, i + 8)].map((b) => b.toString(16).padStart(2, "0"));
      return `video/mp4; codecs="avc1.${hex.join("")}"`;
    }
  }
  return null;
}

const once = (target, name, signal) =>
  new Promise((resolve) => target.addEventListener(name, resolve, { once: true, signal }));

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Player {
  constructor(video) {
    this.video = video;
    this.leaving = new AbortController();
    this.url = null;
  }

  stop() {
    this.leaving.abort();
    this.leaving = new AbortController();
    this.video.removeAttribute("src");
    this.video.load();
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
  }

  // A video that is whole: with ranges where no key is needed, else as one piece.
  async showWhole(path) {
    this.stop();
    const { signal } = this.leaving;
    if (!key.get()) {
      this.video.src = path;
    } else {
      const blob = await (await send(path, { signal })).blob();
      if (signal.aborted) return;
      this.url = URL.createObjectURL(blob);
      this.video.src = this.url;
    }
    this.video.play().catch(() => {}); // who doesn't want that presses play
  }

  // A video in the making. Returns false where this browser can't, and when it is stopped.
  async showGrowing(path) {
    this.stop();
    const { signal } = this.leaving;
    const Source = window.ManagedMediaSource ?? window.MediaSource;
    if (!Source) return false;
    const source = new Source();
    this.video.disableRemotePlayback = true;
    this.url = URL.createObjectURL(source);
    this.video.src = this.url;
    await once(source, "sourceopen", signal);
    const reader = (await send(path, { signal })).body.getReader();
    const first = await this.header(reader);
    if (!first || signal.aborted) return false;
    const type = codec(first);
    if (!type || !Source.isTypeSupported(type)) return false;
    const buffer = source.addSourceBuffer(type);
    await this.append(buffer, first);
    this.video.play().catch(() => {});
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      await this.append(buffer, value);
      while (this.ahead() > AHEAD && !signal.aborted) await pause(500);
    }
    if (source.readyState === "open") source.endOfStream();
    return true;
  }

  // What comes first, up to where the codec can be told.
  async header(reader) {
    let held = new Uint8Array();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return null;
      const longer = new Uint8Array(held.length + value.length);
      longer.set(held);
      longer.set(value, held.length);
      held = longer;
      if (codec(held)) return held;
    }
  }

  async append(buffer, data) {
    for (;;) {
      try {
        const done = once(buffer, "updateend", this.leaving.signal);
        buffer.appendBuffer(data);
        await done;
        return;
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        const until = this.video.currentTime - BEHIND;
        if (until > 0) {
          const done = once(buffer, "updateend", this.leaving.signal);
          buffer.remove(0, until);
          await done;
        } else {
          await pause(1000);
        }
      }
    }
  }

  ahead() {
    const { buffered, currentTime } = this.video;
    return buffered.length ? buffered.end(buffered.length - 1) - currentTime : 0;
  }
}
