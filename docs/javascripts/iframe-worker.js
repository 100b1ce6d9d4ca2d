// A page that is opened from a folder gets no web workers from the browser, and the search of the site is one.
// This is as much of a Worker as the search asks for, in a hidden frame: messages both ways, and importScripts,
// which waits for a script where that of a worker would block. mkdocs-material looks for it under this name and
// would otherwise fetch one from the network.
"use strict"

class FrameWorker extends EventTarget {
  constructor(url) {
    super()
    this.frame = document.body.appendChild(document.createElement("iframe"))
    this.frame.hidden = true
    this.scope = this.frame.contentWindow
    // Written at once: a browser may replace the window of a frame that is still empty.
    this.scope.document.open()
    this.scope.document.write("<body></body>")
    this.scope.document.close()
    this.scope.postMessage = data => this.receive(data)
    this.scope.importScripts = (...urls) =>
      urls.reduce((before, next) => before.then(() => this.load(next)), Promise.resolve())
    this.ready = this.load(url)
  }

  load(url) {
    return new Promise((done, failed) => {
      const script = this.scope.document.createElement("script")
      Object.assign(script, { src: url, onload: done, onerror: failed })
      this.scope.document.body.append(script)
    })
  }

  receive(data) {
    const message = new MessageEvent("message", { data })
    this.dispatchEvent(message)
    if (this.onmessage) this.onmessage(message)
  }

  postMessage(data) {
    const message = new this.scope.MessageEvent("message", { data: structuredClone(data) })
    this.ready.then(() => this.scope.dispatchEvent(message))
  }

  terminate() {
    this.frame.remove()
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker
