// The style sheet and the script of the page. Two ramps, safe for colour-blind eyes: h (little to all, one direction;
// dark pages have it reversed, so that more is always further from the page) and a (brown to teal, wrong to right). The
// plans have the colours of Okabe and Ito (2008) and a marker each, so that colour alone says nothing.
#include "report/page_parts.h"

namespace polyspan::report {

std::string page_style() {
  return R"css(:root{color-scheme:light dark;--page:#fcfcfa;--ink:#1d2126;--soft:#5a626b;--faint:#dcdfe1;--box:#f3f4f2;--link:#1b5e8c;
--h0:#eef3d9;--h1:#d3ebc0;--h2:#a6dbb9;--h3:#6cc6be;--h4:#3ea9c1;--h5:#2785b8;--h6:#265da2;--h7:#26377f;--h8:#131b4d;
--a0:#a8641c;--a1:#bf812d;--a2:#d5a458;--a3:#e6c890;--a4:#efe6d0;--a5:#c9e4de;--a6:#8ccdc2;--a7:#4ba79b;--a8:#1c7d73;
--b0:#fff;--b1:#1d2126;--b2:#1d2126;--b3:#1d2126;--b4:#1d2126;--b5:#1d2126;--b6:#1d2126;--b7:#1d2126;--b8:#fff;
--dense:#6a727a;--uniform:#c8550a;--two:#a8508a;--plan:#0069a8;--second:#c8550a;--third:#1a8a66;--fourth:#a8508a;
--d0:#0069a8;--d1:#1a8a66;--d2:#c8550a}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--ink:#e4e6e8;--soft:#a0a8b0;--faint:#32373c;--box:#1d2125;--link:#7fbfe8;
--h0:#23293a;--h1:#283c63;--h2:#28558a;--h3:#2673a3;--h4:#2f93ac;--h5:#51b2ac;--h6:#88ccab;--h7:#c2e3b4;--h8:#f4f7d0;
--a0:#c07a2e;--a1:#a3692b;--a2:#805528;--a3:#5c4226;--a4:#3a3832;--a5:#27474a;--a6:#245f60;--a7:#2a8078;--a8:#3fa596;
--b0:#14171a;--b1:#f2f3f4;--b2:#f2f3f4;--b3:#f2f3f4;--b4:#f2f3f4;--b5:#f2f3f4;--b6:#f2f3f4;--b7:#f2f3f4;--b8:#14171a;
--dense:#9aa2aa;--uniform:#ef8a3c;--two:#d890bd;--plan:#5fb4ea;--second:#ef8a3c;--third:#45c09a;--fourth:#d890bd;
--d0:#5fb4ea;--d1:#45c09a;--d2:#ef8a3c}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums;overflow-wrap:break-word}
main{max-width:1120px;margin:0 auto;padding:40px 20px 72px}
h1{font-size:clamp(1.7rem,4.5vw,2.4rem);line-height:1.15;letter-spacing:-.015em;margin:0 0 6px;font-weight:650}
h2{font-size:1.35rem;line-height:1.25;letter-spacing:-.008em;margin:0 0 8px;font-weight:650}
h3{font-size:1rem;margin:28px 0 10px;font-weight:650}
p{margin:0 0 12px;max-width:68ch}
.over{font-size:.82rem;letter-spacing:.04em;color:var(--soft);margin-bottom:4px}
.sub{color:var(--soft);margin-bottom:22px;max-width:none}
.lead{font-size:1.08rem;line-height:1.6}
.notice{border-left:3px solid var(--uniform);background:var(--box);padding:10px 14px}
.absent,.note{color:var(--soft)}
section{margin-top:56px;padding-top:24px;border-top:1px solid var(--faint)}
nav{margin-top:26px;display:flex;flex-wrap:wrap;gap:6px 20px;font-size:.94rem}
a{color:var(--link);text-decoration-thickness:1px;text-underline-offset:3px}
code{font:0.88em ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;background:var(--box);padding:2px 5px;border-radius:3px;overflow-wrap:anywhere}
figure{margin:0;min-width:0}
figcaption{font-size:.88rem;color:var(--soft);margin-top:4px}
figcaption strong{color:var(--ink);font-weight:600}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:26px 28px;margin:14px 0 8px}
.gallery.maps{grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr))}
.gallery.maps.one{grid-template-columns:minmax(0,1fr)}
.gallery.layers{grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:10px 8px}
.gallery.grids{grid-template-columns:repeat(auto-fill,minmax(min(100%,240px),1fr))}
.beside{display:grid;grid-template-columns:minmax(0,380px) minmax(0,1fr);gap:24px 36px;align-items:start;margin:14px 0}
@media (max-width:820px){.beside{grid-template-columns:minmax(0,1fr)}main{padding-top:28px}section{margin-top:44px}}
.scroll{overflow-x:auto;overflow-y:hidden;max-width:100%}
svg{display:block;height:auto;font:11px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;overflow:visible}
figure svg{width:100%;max-width:400px}
.map svg{max-width:510px}
.one svg{width:auto;max-width:none}
.grid svg{width:auto;max-width:none}
@media (min-width:940px){.maps:not(.one) .tick{font-size:7.6px}}
.scroll:has(svg){overflow-y:visible}
text{fill:var(--ink)}
.tick{fill:var(--soft);font-size:10.5px}
.name{fill:var(--soft);font-size:10.5px}
.label{font-size:11px}
.label.strong{font-weight:650}
.cell{font-size:11px}
.gridline{stroke:var(--faint);stroke-width:1}
.axis{stroke:var(--soft);stroke-width:1}
.leader{stroke:var(--faint);stroke-width:1}
.dense-line{stroke:var(--dense);stroke-width:1.5;stroke-dasharray:4 3}
.curve{fill:none;stroke-width:1.1;stroke-opacity:.55;stroke-linejoin:round}
.curve.one{stroke:var(--soft);stroke-opacity:.85}
.curve.d0,.stroke.d0{stroke:var(--d0)}.curve.d1,.stroke.d1{stroke:var(--d1)}.curve.d2,.stroke.d2{stroke:var(--d2)}
.curve.raw{stroke:var(--c);stroke-opacity:.4}
.curve:hover{stroke-width:2.6;stroke-opacity:1}
.series{fill:none;stroke-width:1.8;stroke-linejoin:round}
.series.s-dense{stroke-dasharray:5 3}.series.s-uniform{stroke-dasharray:2 3}
.s-dense{--c:var(--dense)}.s-uniform{--c:var(--uniform)}.s-two{--c:var(--two)}.s-plan{--c:var(--plan)}
.s-second{--c:var(--second)}.s-third{--c:var(--third)}.s-fourth{--c:var(--fourth)}
.series{stroke:var(--c)}
.dot{fill:var(--c);stroke:var(--page);stroke-width:1}
.dot.d0{--c:var(--d0)}.dot.d1{--c:var(--d1)}.dot.d2{--c:var(--d2)}
.dot.hollow{fill:var(--page);stroke:var(--c);stroke-width:1.5}
.ring{fill:none;stroke:var(--ink);stroke-width:1.4}
.h0{fill:var(--h0)}.h1{fill:var(--h1)}.h2{fill:var(--h2)}.h3{fill:var(--h3)}.h4{fill:var(--h4)}.h5{fill:var(--h5)}.h6{fill:var(--h6)}.h7{fill:var(--h7)}.h8{fill:var(--h8)}
.a0{fill:var(--a0)}.a1{fill:var(--a1)}.a2{fill:var(--a2)}.a3{fill:var(--a3)}.a4{fill:var(--a4)}.a5{fill:var(--a5)}.a6{fill:var(--a6)}.a7{fill:var(--a7)}.a8{fill:var(--a8)}
.b0{fill:var(--b0)}.b1{fill:var(--b1)}.b2{fill:var(--b2)}.b3{fill:var(--b3)}.b4{fill:var(--b4)}.b5{fill:var(--b5)}.b6{fill:var(--b6)}.b7{fill:var(--b7)}.b8{fill:var(--b8)}
rect.same{stroke:var(--ink);stroke-width:1.5}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;padding:0;margin:10px 0;font-size:.88rem;color:var(--soft)}
.legend li{display:flex;align-items:center;gap:5px}
.legend svg{flex:none;width:16px}
.shades{gap:4px 8px}
.shade{width:15px;height:13px;display:inline-block}
.shade.h0{background:var(--h0)}.shade.h1{background:var(--h1)}.shade.h2{background:var(--h2)}.shade.h3{background:var(--h3)}.shade.h4{background:var(--h4)}
.shade.h5{background:var(--h5)}.shade.h6{background:var(--h6)}.shade.h7{background:var(--h7)}.shade.h8{background:var(--h8)}
.stroke{width:16px;height:2px;display:inline-block}
.stroke.d0{background:var(--d0)}.stroke.d1{background:var(--d1)}.stroke.d2{background:var(--d2)}
table{border-collapse:collapse;font-size:.88rem;line-height:1.4}
.table{margin:18px 0 6px;min-width:0}
.beside .table{margin-top:0}
.caption{font-size:.88rem;color:var(--soft);margin:0 0 4px}
.gallery+p,.table+p{margin-top:18px}
th,td{padding:5px 14px 5px 0;text-align:right;font-weight:400;border-bottom:1px solid var(--faint);white-space:nowrap;vertical-align:bottom}
thead th{color:var(--soft);white-space:normal;min-width:4.2em;line-height:1.25}
th:first-child{text-align:left}
tr.strong th,tr.strong td{font-weight:650}
td small,th small{color:var(--soft);font-size:.9em;font-weight:400}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 24px;margin:0 0 22px;font-size:.94rem}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
@media (max-width:520px){dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:8px}}
summary{cursor:pointer;font-size:.94rem;margin:14px 0 6px}
pre{font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--box);padding:12px 14px;overflow:auto;max-height:24em;margin:8px 0}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
#hint{position:fixed;z-index:2;pointer-events:none;max-width:min(320px,calc(100vw - 24px));background:var(--ink);color:var(--page);
font-size:.82rem;line-height:1.4;padding:6px 9px;border-radius:4px}
@media print{nav,#hint{display:none}section{break-inside:auto}figure{break-inside:avoid}}
)css";
}

std::string page_script() {
  return R"js((function(){
var box=null,marked=[];
function hide(){if(box){box.remove();box=null}marked.forEach(function(e){e.classList.remove("same")});marked=[]}
function show(e,x,y){
hide();
if(!e)return;
var t=e.querySelector(":scope > title");
if(t){e.setAttribute("data-hint",t.textContent);t.remove()}
var text=e.getAttribute("data-hint");
if(!text)return;
box=document.createElement("div");box.id="hint";box.textContent=text;document.body.appendChild(box);
var w=box.offsetWidth,h=box.offsetHeight;
box.style.left=Math.max(8,Math.min(x+12,innerWidth-w-8))+"px";
box.style.top=(y+18+h>innerHeight?Math.max(8,y-h-12):y+18)+"px";
var map=e.closest(".maps");
if(map){var i=Array.prototype.indexOf.call(e.parentNode.children,e);
map.querySelectorAll("svg").forEach(function(s){var c=s.children[i];if(c&&c.tagName==e.tagName){c.classList.add("same");marked.push(c)}})}
}
function target(n){return n.closest&&n.closest("rect,circle,polygon,polyline")}
document.addEventListener("pointerover",function(v){show(target(v.target),v.clientX,v.clientY)});
document.addEventListener("pointerdown",function(v){show(target(v.target),v.clientX,v.clientY)});
document.addEventListener("scroll",hide,{passive:true});
})();
)js";
}

}  // namespace polyspan::report
